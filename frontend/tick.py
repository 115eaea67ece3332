"""One tick of a conversation on the way to the engine and back."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from contract.controls import Controls
from contract.errors import ErrorCode
from contract.events import Event
from contract.parameters import parameters_of, take_controls

MAX_SEQUENCE_ID = 2**63 - 1  # tritonclient sends an int64


class TickError(RuntimeError):
    """The engine failed or refused a tick, or does not answer; the message gives the reason."""

    def __init__(self, message: str, code: ErrorCode = ErrorCode.TICK_FAILED):
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class TickIn:
    """One tick of the client's audio, with the client's requests."""

    pcm: bytes
    start: bool = False
    end: bool = False
    controls: Controls = field(default_factory=Controls)
    options: Mapping[str, Any] = field(default_factory=dict)  # options of the conversation, with START

    @property
    def parameters(self) -> dict[str, Any]:
        """The request parameters that carry options and controls."""
        return {**self.options, **parameters_of(self.controls)}

    @classmethod
    def from_parameters(
        cls, pcm: bytes, parameters: Mapping[str, Any], tick_ms: int, start: bool = False, end: bool = False
    ) -> TickIn:
        """Return the tick with these request parameters. Raises `ControlError`."""
        options = dict(parameters)
        controls = take_controls(options, tick_ms)
        return cls(pcm, start=start, end=end, controls=controls, options=options)


@dataclass(frozen=True)
class TickOut:
    """One tick of the assistant's audio, with its text and events."""

    pcm: bytes
    text: str
    events: list[Event]
    took_s: float = 0.0  # time from the request to the response


Converse = Callable[[int, AsyncIterator[TickIn]], AsyncGenerator[TickOut | TickError, None]]
"""A function of a sequence id and ticks that returns one answer for each tick, in order."""


def new_sequence_id() -> int:
    """Return a random id of a conversation; never 0."""
    return secrets.randbelow(MAX_SEQUENCE_ID) + 1
