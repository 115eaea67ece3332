"""The state of a conversation that another server needs to continue it, as the engine reports it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Any


class InputState(str, Enum):
    """The user's input: whether a turn is open, what opened it, and what ends it."""

    IDLE = "idle"  # no turn is open
    DEFAULT = "default"  # manual detection: open since the latest answer, possibly without speech; ends with `commit`
    SPEECH = "speech"  # opened by speech; ends with the speech or with `commit`
    PUSHED = "pushed"  # opened by `listen`; ends with `commit`, and if turns are detected also with a speech's end
    KEPT = "kept"  # opened by speech, and detection was switched off since; ends with `commit`
    OVERFLOWED = "overflowed"  # the turn of this speech did not fit into the context: ignored until the speech ends


@dataclass(frozen=True)
class Entry:
    """One part of the history, in order.

    A user's part with a span is audio, to which `text` was typed; any other entry is its text. The text of an
    interrupted answer is what was heard.
    """

    turn: int
    role: str
    text: str = ""
    audio_start_ms: int | None = None
    audio_end_ms: int | None = None


@dataclass(frozen=True)
class State:
    """A snapshot after a tick. Times are on the conversation's input clock, in milliseconds.

    To continue on another server, with manual detection and without answers: send the entries, text as items, audio
    between `listen` and `commit`. Then set the options of [turn], with `clear`. Send the audio of the open turn again,
    with `listen` at `open_from_ms` unless it is the default turn, and `open_text` with its last tick. If `answer_due`,
    or if an answer of the history was in progress, request it by `respond`; send `pending` as items one tick later.
    """

    entries: tuple[Entry, ...] = ()  # without the answer in progress and without the open turn
    pending: tuple[Entry, ...] = ()  # messages that wait for the end of an answer, and get no answer
    answering: int | None = None  # number of the turn whose answer is in progress; 0 if it is out of band
    out_of_band: bool = False  # the answer in progress, or due, is not part of the history
    answer_due: bool = False  # an answer is requested or automatic and has not begun; with an open turn: after its end
    input: InputState = InputState.IDLE
    input_from_ms: int = 0  # audio before this belongs to no later turn
    open_turn: int | None = None  # number of the user's open turn
    open_from_ms: int | None = None  # first millisecond of the user's open turn
    open_text: str = ""  # text typed into the open turn
    speech_from_ms: int | None = None  # start of the speech in progress, if turns are detected
    awaits_silence: bool = False  # detection: the speech in progress was dealt with, only speech after a pause counts
    turn_options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))  # [turn] changed since START
    next_turn: int = 1  # number of the next turn

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of the state."""
        lists = {name: [asdict(entry) for entry in getattr(self, name)] for name in ("entries", "pending")}
        return {**vars(self), **lists, "input": self.input.value, "turn_options": dict(self.turn_options)}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> State:
        """Return the state of a JSON object. Raises `TypeError` for unknown fields, `ValueError` for unknown values."""
        entries = {name: tuple(Entry(**each) for each in found.get(name, ())) for name in ("entries", "pending")}
        return cls(**{**found, **entries, "input": InputState(found.get("input", "idle"))})
