"""Turn taking: what the user's audio does to the open turn and to the answer in progress."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from contract.events import SpeechStarted, SpeechStopped
from contract.state import InputState
from engine.turn.actions import FRAME_MS
from engine.turn.answer_kinds import InHistory
from engine.turn.detection import Change, TurnDetector

if TYPE_CHECKING:  # `conversation` imports this module
    from engine.turn.conversation import TurnConversation


class TurnTaking:
    """Opens and ends the user's turns of one conversation, and lets speech interrupt an answer."""

    def __init__(self, conversation: TurnConversation):
        self._one = conversation
        self.detector = TurnDetector(conversation.options.turn)

    def hear(self, first_frame: int, probabilities: Sequence[float]) -> None:
        """Process the audio of a tick that begins at a frame; `probabilities`: of speech in its windows of 32 ms."""
        one = self._one
        if one.detects_turns:
            for probability in probabilities:
                self._hear_window(probability)
        elif one.input.open is None and one.answers.current is None:
            self._open_turn(first_frame, InputState.DEFAULT)

    def end_turn(self, end: int) -> None:
        """End the open turn at a frame, and answer it if the options or the client require an answer."""
        one, turn = self._one, self._one.options.turn
        ended = one.input.end(end)
        one.queue.add(ended.entry, [*ended.tokens, *one.config.chat.close], ended.clip)
        if turn.create_response or ended.answer_when_done:
            one.answers.request(ended.entry.turn, turn, InHistory(), ended.entry)

    def end_speech(self) -> None:
        """End the speech that goes on, which has been dealt with: speech after a pause is a new one."""
        if self.detector.is_speech:
            self._one.tick_events.emit(SpeechStopped)
        self.detector.end_speech()
        self._one.input.speech_ended()

    def begin_again(self, clock_ms: int) -> None:
        """End the speech that goes on, at a time in the tick: whatever follows is a new one."""
        if self.detector.is_speech:
            self._one.tick_events.emit(SpeechStopped, at_ms=clock_ms)
        self.detector.begin_at(clock_ms)
        self._one.input.speech_ended()

    def _hear_window(self, probability: float) -> None:
        one, detector = self._one, self.detector
        change = detector.feed(probability)
        if change is Change.STARTED:
            one.tick_events.emit(SpeechStarted, at_ms=detector.started_ms)
        if one.input.state is InputState.OVERFLOWED:
            if change is Change.STOPPED:
                one.input.speech_ended()
        elif detector.is_speech or change is Change.STOPPED:
            self._hear_speech()
        if change is Change.STOPPED:
            one.tick_events.emit(SpeechStopped, at_ms=detector.stopped_ms)
            end = detector.stopped_ms // FRAME_MS
            if one.input.open and end > one.input.open.first:
                self.end_turn(end)

    def _hear_speech(self) -> None:
        """Interrupt the answer, and open a turn, if the speech that was detected is a reason to."""
        one, detector, turn = self._one, self.detector, self._one.options.turn
        current = one.answers.current
        is_long_enough = turn.interrupt and detector.spoken_ms >= turn.interrupt_after_ms
        if current and (is_long_enough or current.kind.yields_to_any_speech):
            one.answers.interrupt("speech")
        is_new = detector.voiced_until_ms > one.input.earliest * FRAME_MS
        if not one.answers.current and not one.input.open and is_new:
            first = detector.started_ms // FRAME_MS - turn.prefix_padding_ms // FRAME_MS
            self._open_turn(first, InputState.SPEECH)

    def _open_turn(self, frame: int, state: InputState) -> None:
        """Open a turn at a frame, or at the first one after it whose audio may belong to the turn."""
        self._one.input.begin(max(frame, self._one.input.earliest, self._one.oldest_frame), state)
