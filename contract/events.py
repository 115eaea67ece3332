"""Events of a conversation: what the engine reports about a tick, and what the bridge adds after a move.

On the wire an event is a JSON object with its `type`, `at_ms` on the conversation's input clock, and the fields of its
class; a field without a value is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from contract.errors import ErrorCode
from contract.state import State

_KINDS: dict[str, type[Event]] = {}


@dataclass(frozen=True, kw_only=True)
class Event:
    """The base of all events."""

    type: ClassVar[str] = ""
    at_ms: int

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.type:
            _KINDS[cls.type] = cls

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of the event."""
        found: dict[str, Any] = {"type": self.type}
        for each in fields(self):
            value = getattr(self, each.name)
            if value is None or value is False:
                continue
            found[each.name] = value.value if isinstance(value, ErrorCode) else value
        return found


@dataclass(frozen=True, kw_only=True)
class _OutOfBand(Event):
    """An event of an answer; `out_of_band` if the answer is not part of the history."""

    out_of_band: bool = False


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Tokens before an answer, and the answer's own; an audio token of an answer is a codec frame."""

    input_tokens: int
    input_audio_tokens: int
    output_text_tokens: int
    output_audio_tokens: int


@dataclass(frozen=True, kw_only=True)
class _Ended(_OutOfBand):
    """The end of an answer, with the fields of `Usage`: None if the engine that counted them is lost."""

    turn: int
    input_tokens: int | None = None
    input_audio_tokens: int | None = None
    output_text_tokens: int | None = None
    output_audio_tokens: int | None = None

    @property
    def usage(self) -> Usage | None:
        """The answer's tokens; None if the engine that counted them is lost."""
        if self.input_tokens is None:
            return None
        return Usage(
            input_tokens=self.input_tokens,
            input_audio_tokens=self.input_audio_tokens or 0,
            output_text_tokens=self.output_text_tokens or 0,
            output_audio_tokens=self.output_audio_tokens or 0,
        )


@dataclass(frozen=True, kw_only=True)
class SpeechStarted(Event):
    """The user's speech began at `at_ms`."""

    type = "speech_started"


@dataclass(frozen=True, kw_only=True)
class SpeechStopped(Event):
    """The user's speech was found to have ended at `at_ms`."""

    type = "speech_stopped"


@dataclass(frozen=True, kw_only=True)
class Committed(Event):
    """A user's turn or an added message is part of the history; the span is the user's audio, if there is any."""

    type = "committed"
    turn: int
    audio_start_ms: int | None = None
    audio_end_ms: int | None = None


@dataclass(frozen=True, kw_only=True)
class InputDropped(Event):
    """The user's open turn was dropped: it is not part of the history and gets no answer."""

    type = "input_dropped"
    turn: int


@dataclass(frozen=True, kw_only=True)
class AnswerStarted(_OutOfBand):
    """An answer begins with this tick."""

    type = "answer_started"
    turn: int
    audio_start_ms: int | None = None
    audio_end_ms: int | None = None


@dataclass(frozen=True, kw_only=True)
class Text(_OutOfBand):
    """The answer's text grew by `text`."""

    type = "text"
    text: str


@dataclass(frozen=True, kw_only=True)
class AnswerDone(_Ended):
    """An answer ended without an interruption: `reason` is end, length or context."""

    type = "answer_done"
    spoken_ms: int
    text: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Interrupted(_Ended):
    """An answer was ended `by` speech, cancel, listen, message or move; the history keeps `heard_text`."""

    type = "interrupted"
    by: str
    heard_ms: int
    heard_text: str


@dataclass(frozen=True, kw_only=True)
class Truncated(Event):
    """An answer's text in the history now ends with what the user has heard."""

    type = "truncated"
    turn: int
    heard_text: str


@dataclass(frozen=True, kw_only=True)
class Forgotten(Event):
    """One part of a turn was removed from the history."""

    type = "forgotten"
    turn: int
    part: str


@dataclass(frozen=True, kw_only=True)
class TurnsDropped(Event):
    """The oldest turn was evicted, because the context is full; `left` turns remain."""

    type = "turns_dropped"
    turn: int
    count: int
    left: int


@dataclass(frozen=True, kw_only=True)
class Transcript(Event):
    """The history as text, one object for each part of a turn."""

    type = "transcript"
    turns: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class _Label(Event):
    """A property of the speaker of a turn, with its probability."""

    label: str
    probability: float
    audio_start_ms: int
    audio_end_ms: int


@dataclass(frozen=True, kw_only=True)
class Emotion(_Label):
    """The emotion in the user's voice."""

    type = "emotion"


@dataclass(frozen=True, kw_only=True)
class Language(_Label):
    """The language that the user speaks."""

    type = "language"


@dataclass(frozen=True, kw_only=True)
class Reset(Event):
    """The conversation begins again: clock and turn numbers start at 0."""

    type = "reset"


@dataclass(frozen=True, kw_only=True)
class Error(_OutOfBand):
    """A control could not be applied, or a turn was dropped; the conversation continues."""

    type = "error"
    code: ErrorCode
    message: str
    what: str | None = None  # "item" if an added message was dropped
    turn: int | None = None  # turn and part of a `forget` or `truncate`
    part: str | None = None


@dataclass(frozen=True, kw_only=True)
class StateChanged(Event):
    """All that another server needs to continue the conversation, if the START request has `report_state`."""

    type = "state"
    state: State

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of the event."""
        return {"type": self.type, "at_ms": self.at_ms, "state": self.state.to_json()}


@dataclass(frozen=True, kw_only=True)
class Moved(Event):
    """The bridge continued the conversation on another server, `took_ms` after the first one was lost."""

    type = "moved"
    took_ms: int


@dataclass(frozen=True, kw_only=True)
class UnknownEvent(Event):
    """An event of an engine that is newer than the bridge."""

    found: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object as it came."""
        return dict(self.found)


EVENT_TYPES = tuple(_KINDS)


def event_of(found: Mapping[str, Any]) -> Event:
    """Return the event of a JSON object; one of an unknown type or with unknown fields is an `UnknownEvent`."""
    values = {name: value for name, value in found.items() if name != "type"}
    kind = _KINDS.get(found["type"])
    unknown = UnknownEvent(at_ms=int(found.get("at_ms", 0)), found=dict(found))
    try:
        if kind is Error:
            values["code"] = ErrorCode(values["code"])
        if kind is StateChanged:
            values["state"] = State.from_json(values["state"])
        return kind(**values) if kind else unknown
    except (TypeError, ValueError):
        return unknown
