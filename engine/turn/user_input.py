"""The user's turn while it is open: where it begins, which of its windows are queued, and how it ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from contract.events import Committed, InputDropped
from contract.state import InputState
from engine.clip import Clip
from engine.turn.actions import FRAME_MS, TurnConfig
from engine.turn.events import TickEvents
from engine.turn.history import History, UserAudio
from engine.turn.prefill_queue import PrefillQueue


@dataclass
class OpenTurn:
    """A user's turn whose end is not known yet. Frames are log-mel frames of the input clock."""

    entry: UserAudio
    state: InputState
    first: int
    queued: int  # windows are queued up to this frame
    answer_when_done: bool = False  # whatever the option `create_response` says

    @property
    def number(self) -> int:
        """Number of the turn."""
        return self.entry.turn


class EndedTurn(NamedTuple):
    """A user's turn that has ended, and its last tokens, which are not queued yet."""

    entry: UserAudio
    tokens: list[int]
    clip: Clip | None
    answer_when_done: bool


class UserInput:
    """Owns the open turn, and the frame before which the user's audio belongs to no later turn."""

    def __init__(self, config: TurnConfig, history: History, queue: PrefillQueue, events: TickEvents):
        self.open: OpenTurn | None = None
        self.earliest = 0
        self._is_overflowed = False  # only without an open turn
        self._config, self._history, self._queue, self._events = config, history, queue, events

    @property
    def state(self) -> InputState:
        """The state of the user's input."""
        if self.open:
            return self.open.state
        return InputState.OVERFLOWED if self._is_overflowed else InputState.IDLE

    @property
    def is_used(self) -> bool:
        """True while a turn is open that holds the user's input: any except the default turn of manual detection."""
        return self.open is not None and self.open.state is not InputState.DEFAULT

    def is_default(self, turn: int) -> bool:
        """Return True for the number of an open default turn."""
        return self.open is not None and self.open.number == turn and not self.is_used

    def begin(self, first: int, state: InputState) -> OpenTurn:
        """Open a turn at a frame."""
        assert self.open is None, "a turn is opened only if none is open"
        self.open = OpenTurn(UserAudio(self._history.new_turn()), state, first, first)
        self._is_overflowed = False
        return self.open

    def consume(self, frame: int) -> None:
        """Use up the audio before a frame: it belongs to no later turn."""
        self.earliest = max(self.earliest, frame)

    def keep(self) -> None:
        """Keep a turn that speech has opened, after detection was switched off."""
        if self.open and self.open.state is InputState.SPEECH:
            self.open.state = InputState.KEPT

    def speech_ended(self) -> None:
        """Listen again after the speech whose turn did not fit into the context."""
        self._is_overflowed = False

    def type(self, text: str) -> None:
        """Add typed text to the open turn."""
        assert self.open is not None
        entry = self.open.entry
        entry.typed = f"{entry.typed}\n{text}" if entry.typed else text

    def drop(self) -> OpenTurn | None:
        """Drop and return the open turn: an answer that was requested for its end is the caller's to settle."""
        dropped, self.open = self.open, None
        if dropped:
            self._queue.drop(dropped.number)
            self._history.remove(dropped.number)
            if dropped.state is not InputState.DEFAULT:
                self._events.emit(InputDropped, turn=dropped.number)
        return dropped

    def overflow(self, frame: int, is_speech: bool) -> None:
        """Drop the open turn, which does not fit into the context, and ignore the speech that goes on."""
        self.drop()
        self.consume(frame)
        self._is_overflowed = is_speech

    def take_back(self) -> None:
        """Queue the open turn again, after what is queued next."""
        if self.open:
            self._queue.drop(self.open.number)
            self._history.remove(self.open.number)
            self.open.queued = self.open.first

    def queue_windows(self, end: int) -> None:
        """Queue the windows of the open turn that are complete and not its last one."""
        turn, window = self.open, self._config.window_frames
        while turn and end - turn.queued > window:
            clip = Clip(turn.first, turn.queued, turn.queued + window)
            self._queue.add(turn.entry, self._audio(turn, self._config.audio_tokens(window)), clip)
            turn.queued += window

    def end(self, end: int) -> EndedTurn:
        """End the open turn at a frame, and queue all of it except its last tokens, which are returned."""
        turn, config, chat = self.open, self._config, self._config.chat
        assert turn is not None
        self.queue_windows(end)
        self._queue.end_turn(turn.number, end)
        entry, clip = turn.entry, Clip(turn.first, turn.queued, end, end)
        entry.span_ms = (turn.first * FRAME_MS, end * FRAME_MS)
        whole, last = config.audio_tokens(config.window_frames), config.audio_tokens(clip.frames)
        entry.audio_tokens = (clip.first - clip.turn_first) // config.window_frames * whole + last
        self.open = None
        self.consume(end)
        audio = [*self._audio(turn, last), *chat.after_audio]
        span = {"audio_start_ms": entry.span_ms[0], "audio_end_ms": entry.span_ms[1]}
        self._events.emit(Committed, turn=turn.number, **span)
        if not entry.typed:
            return EndedTurn(entry, audio, clip, turn.answer_when_done)
        self._queue.add(entry, audio, clip)
        return EndedTurn(entry, chat.typed(entry.typed, after_audio=True), None, turn.answer_when_done)

    def _audio(self, turn: OpenTurn, count: int) -> list[int]:
        """Return `count` audio tokens, and before the first ones of a turn its opening."""
        chat = self._config.chat
        tokens = [chat.audio] * count
        return tokens if turn.queued > turn.first else [*chat.user_opening, *chat.before_audio, *tokens]
