"""The events of one tick, in order."""

from __future__ import annotations

from typing import Any

from contract.errors import ErrorCode
from contract.events import Error, Event


class TickEvents:
    """Collects the events of a conversation's tick, and sets their times."""

    def __init__(self) -> None:
        self.emitted: list[Event] = []
        self.clock_ms = 0

    def begin_tick(self, clock_ms: int) -> None:
        """Start a tick that ends at `clock_ms` on the input clock."""
        self.emitted = []
        self.clock_ms = clock_ms

    def emit(self, kind: type[Event], /, **fields: Any) -> None:
        """Emit an event with these fields, at the end of the tick if `at_ms` is not among them."""
        self.emitted.append(kind(**{"at_ms": self.clock_ms, **fields}))

    def refuse(self, code: ErrorCode, message: str, /, **fields: Any) -> None:
        """Emit an error: a control could not be applied, or a turn was dropped."""
        self.emit(Error, code=code, message=message, **fields)
