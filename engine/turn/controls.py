"""The controls of a tick, applied to a conversation in the order of the fields of `Controls`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from config.settings import TurnSettings
from contract.controls import Controls, ForgetControl, ItemControl, OutOfBandControl, Part, Role, TruncateControl
from contract.errors import ErrorCode
from contract.events import Transcript
from contract.state import InputState
from engine.errors import OptionError
from engine.options import changed_turn
from engine.turn.actions import FRAME_MS
from engine.turn.answer_kinds import InHistory, OutOfBand
from engine.turn.history import OUT_OF_BAND, Message

if TYPE_CHECKING:  # `conversation` imports this module
    from engine.turn.conversation import TurnConversation

IN_EVERY_TICK = frozenset({"items", "respond"})
"""Controls that may apply without a value in the tick: items wait, and a request may be carried on."""


class TurnControls:
    """Applies the controls of one conversation. A tick's audio is processed between the two tables."""

    def __init__(self, conversation: TurnConversation):
        self._one = conversation
        self._first_frame = 0  # first log-mel frame of the tick
        self._is_respond_carried = False  # the turn whose answer was requested for its end was dropped in this tick
        self.before_audio: dict[str, Callable[[Any], None]] = {
            "turn": self._change_options,
            "cancel": self._cancel,
            "clear": self._clear,
            "truncate": self._truncate,
            "forget": self._forget,
            "items": self._add_items,
            "listen": self._listen,
            "message": self._take_message,
        }
        self.after_audio: dict[str, Callable[[Any], None]] = {
            "commit": self._commit,
            "respond": self._respond,
            "out_of_band": self._answer_out_of_band,
            "transcript": self._report_transcript,
        }
        self.turn_options: dict[str, Any] = {}  # changed since START

    def apply_before_audio(self, controls: Controls, first_frame: int) -> None:
        """Apply the controls that come before the tick's audio, which begins at `first_frame`."""
        self._first_frame = first_frame
        self._apply(self.before_audio, controls)

    def apply_after_audio(self, controls: Controls) -> None:
        """Apply the controls that come after the tick's audio."""
        self._apply(self.after_audio, controls)
        self._is_respond_carried = False

    def _apply(self, handlers: Mapping[str, Callable[[Any], None]], controls: Controls) -> None:
        for name, handler in handlers.items():
            value = getattr(controls, name)
            if value or name in IN_EVERY_TICK:
                handler(value)

    def _change_options(self, changes: Mapping[str, Any]) -> None:
        """Use other options of turns from this tick on."""
        one = self._one
        turn = self._changed(changes, {})
        if turn is None:
            return
        self.turn_options |= changes
        if turn.detection != one.options.turn.detection:
            if one.detects_turns and one.input.open and not one.input.open.answer_when_done:
                one.input.keep()
            else:
                self._drop_input(one.clock)
            one.turn_taking.begin_again(one.clock_ms)
        one.options = replace(one.options, turn=turn)
        one.scratch.keep_requested(turn)
        one.turn_taking.detector.change(turn)

    def _changed(self, changes: Mapping[str, Any], about: Mapping[str, bool]) -> TurnSettings | None:
        """Return the options of turns with some of them changed; None, after an error event, if they are not valid."""
        one = self._one
        try:
            turn = changed_turn(one.options.turn, changes)
            one.config.expect_possible(turn)
        except OptionError as error:
            one.tick_events.refuse(ErrorCode.BAD_CONTROL, str(error), **about)
            return None
        return turn

    def _cancel(self, _: bool) -> None:
        """End the answer in progress, or withdraw the request for one at the end of the user's turn."""
        one = self._one
        if one.answers.current and one.answers.current.kind.cancelled_by == "cancel":
            one.answers.interrupt("cancel")
            return
        self._is_respond_carried = False
        if one.input.open:
            one.input.open.answer_when_done = False
        one.tick_events.refuse(ErrorCode.NOTHING_TO_CANCEL, "cancel: expected an answer in progress, got none")

    def _clear(self, _: bool) -> None:
        """Drop the open turn and the audio before this tick: speech that goes on is a new speech."""
        self._drop_input(self._first_frame)
        self._one.turn_taking.begin_again(self._first_frame * FRAME_MS)

    def _truncate(self, control: TruncateControl) -> None:
        self._one.edits.truncate(control)

    def _forget(self, control: ForgetControl) -> None:
        if self._one.edits.forget(control) and control.part is Part.USER:
            self._one.scratch.drop(control.turn)

    def _add_items(self, items: tuple[ItemControl, ...]) -> None:
        """Add messages that get no answer: after an answer in progress, and before a turn that is open."""
        one = self._one
        one.messages.waiting += items
        if one.messages.waiting and one.answers.current is None:
            one.input.take_back()
            one.messages.add_waiting()

    def _listen(self, moment: bool | int) -> None:
        """Open the user's turn here."""
        one, frame = self._one, self._frame(moment, self._first_frame)
        if one.answers.current:
            one.answers.interrupt("listen")
        self._drop_input(frame)
        one.turn_taking.end_speech()
        opened = one.input.begin(max(frame, one.oldest_frame), InputState.PUSHED)
        opened.answer_when_done = self._is_respond_carried
        self._is_respond_carried = False

    def _take_message(self, text: str) -> None:
        """Add a typed message to the turn that is being spoken; else answer it as a separate turn."""
        one = self._one
        if one.answers.current:
            one.answers.interrupt("message")
        if one.input.open and (one.turn_taking.detector.is_speech or (not one.detects_turns and one.input.is_used)):
            one.input.type(text)
            return
        if one.input.drop():  # the answer to the message serves a `respond` that waited for the turn's end
            one.input.consume(one.clock)
        if entry := one.messages.add_typed(text):
            one.answers.request(entry.turn, one.options.turn, InHistory())

    def _commit(self, moment: bool | int) -> None:
        """End the user's turn here."""
        one, frame = self._one, self._frame(moment, self._one.clock)
        if one.input.open is None or frame <= one.input.open.first:
            message = "commit: expected audio of a user's turn before it, got none"
            one.tick_events.refuse(ErrorCode.NOTHING_TO_COMMIT, message)
            return
        one.turn_taking.end_speech()
        one.turn_taking.end_turn(frame)

    def _respond(self, is_requested: bool) -> None:
        """Request an answer to the history as it is; while the user's turn is open, at the turn's end."""
        one = self._one
        if not is_requested and (one.answers.current or not self._is_respond_carried):
            return
        if one.answers.current:
            message = "respond: expected no answer in progress, got one"
            one.tick_events.refuse(ErrorCode.ANSWER_ACTIVE, message)
        elif one.input.open and one.input.is_used:
            one.input.open.answer_when_done = True
        else:
            if one.input.drop():
                one.input.consume(one.clock)
            one.answers.request(one.history.new_turn(), one.options.turn, InHistory())

    def _answer_out_of_band(self, control: OutOfBandControl) -> None:
        """Request an answer that is not added to the history; the user's speech comes first, and ends the answer."""
        one, kind = self._one, OutOfBand(self._one.answers.drawn)
        about, longest = kind.event_fields, one.history.longest_turn
        if control.cancel:
            if one.answers.current and one.answers.current.kind.cancelled_by == "out_of_band":
                one.answers.interrupt("cancel")
            return
        chat, instructions = one.config.chat, control.instructions
        message = chat.message("system", instructions) if instructions.strip() else []
        length = len(message) + len(chat.answer_opening)
        if one.answers.current or one.turn_taking.detector.is_speech or one.input.is_used:
            reason = "out_of_band: expected that the user does not speak and no answer is in progress"
            one.tick_events.refuse(ErrorCode.ANSWER_ACTIVE, reason, **about)
        elif length > longest:
            expected = f"expected at most {longest} tokens (engine.context_s)"
            reason = f"the instructions are dropped: {expected}, got {length}"
            one.tick_events.refuse(ErrorCode.TURN_TOO_LONG, reason, **about)
        elif options := self._changed(control.turn, about):
            if one.input.drop():
                one.input.consume(one.clock)
            if message:
                one.queue.add(Message(OUT_OF_BAND, Role.SYSTEM, instructions), message)
            one.answers.request(OUT_OF_BAND, options, kind)

    def _report_transcript(self, _: bool) -> None:
        self._one.tick_events.emit(Transcript, turns=list(self._one.history.transcript()))

    def _drop_input(self, frame: int) -> None:
        """Drop the open turn and the audio before a frame; a request for its answer is carried to the tick's end."""
        dropped = self._one.input.drop()
        self._is_respond_carried |= dropped is not None and dropped.answer_when_done
        self._one.input.consume(frame)

    def _frame(self, moment: bool | int, default: int) -> int:
        """Return the frame of a moment in the tick."""
        return default if moment is True else self._first_frame + moment // FRAME_MS
