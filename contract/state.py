"""The state of a conversation that another server needs to continue it, as the engine reports it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


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
    """A snapshot after a tick. Times are on the conversation's input clock, in milliseconds."""

    entries: tuple[Entry, ...] = ()
    pending: tuple[Entry, ...] = ()  # messages that wait for the end of an answer, and get no answer
    answering: int | None = None  # number of the turn whose answer is in progress
    out_of_band: bool = False  # the answer in progress is not part of the history
    answer_due: bool = False  # an answer is requested or automatic, and has not begun
    input_from_ms: int = 0  # audio before this belongs to no later turn
    open_from_ms: int | None = None  # first millisecond of the user's open turn
    open_text: str = ""  # text typed into the open turn
    next_turn: int = 1  # number of the next turn

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of the state."""
        return asdict(self)

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> State:
        """Return the state of a JSON object. Raises `TypeError` for unknown fields."""
        entries = {name: tuple(Entry(**each) for each in found.get(name, ())) for name in ("entries", "pending")}
        return cls(**{**found, **entries})
