"""Controls: requests of a client in mid-conversation.

The engine applies the controls of one tick in the order of the fields of `Controls`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from types import MappingProxyType
from typing import Any


class Role(str, Enum):
    """The author of a message, as the chat template names it."""

    USER = "user"
    ASSISTANT = "assistant"
    SYSTEM = "system"


class Part(str, Enum):
    """One side of a turn."""

    USER = "user"
    ANSWER = "answer"


@dataclass(frozen=True)
class ItemControl:
    """A text message that is appended to the history."""

    role: Role
    text: str


@dataclass(frozen=True)
class TruncateControl:
    """An answer whose text ends where the user has heard its audio to."""

    turn: int  # number of the turn, from the event `committed` or `answer_started`
    heard_ms: int


@dataclass(frozen=True)
class ForgetControl:
    """One part of a turn that is removed from the history."""

    turn: int  # number of the turn, from the event `committed` or `answer_started`
    part: Part


@dataclass(frozen=True)
class OutOfBandControl:
    """An answer to the current history that is not added to the history."""

    instructions: str = ""  # text of a system message for this answer only
    turn: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))  # options of [turn] for this answer
    cancel: bool = False  # end the out-of-band answer in progress


@dataclass(frozen=True)
class Controls:
    """The controls of one tick, in the order in which the engine applies them.

    `listen` and `commit` are True, or a number of milliseconds into the tick, from 1 to the tick's length.
    """

    reset: bool = False  # begin the conversation again, with the same options
    turn: Mapping[str, Any] | None = None  # options of the section [turn] that change with this tick
    cancel: bool = False  # end the answer in progress
    clear: bool = False  # drop the user's open turn: audio before this tick belongs to no later turn
    truncate: TruncateControl | None = None
    forget: ForgetControl | None = None
    items: tuple[ItemControl, ...] = ()  # messages for the history, without an answer
    listen: bool | int = False  # the user's turn begins here; an open one is dropped, an answer is interrupted
    message: str = ""  # text that the user has typed: part of the spoken turn, or a separate turn
    commit: bool | int = False  # the user's turn ends with this tick, or here
    respond: bool = False  # answer the history as it is
    out_of_band: OutOfBandControl | None = None
    transcript: bool = False  # report the history as text


CONTROLS = tuple(each.name for each in fields(Controls))
ORDER = {name: place for place, name in enumerate(CONTROLS)}
DECIDES_ANSWER = frozenset({"reset", "cancel", "listen", "message", "commit", "respond"})
"""Controls that decide whether and when an answer is given."""
