"""The options of turns in the engine: as sent, and as applied in the tick whose answer arrives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from frontend.realtime.events import Event
from frontend.realtime.session import Session
from frontend.session.server_clock import ServerClock
from frontend.tick import TickIn


class EngineOptions:
    """Follows the session, and a response's own options until the engine begins to answer it."""

    def __init__(self, clock: ServerClock, session: Session):
        self._clock, self._session = clock, session
        self._sent: Event | None = None  # None: the conversation has not started
        self._applied: Event = {}

    def start(self) -> None:
        """Note that the conversation starts, with the session's options."""
        self._sent = self._session.turn_options()

    def follow(self, own: Mapping[str, Any]) -> None:
        """Send what has changed of the session's options, with a response's `own` options over them."""
        if self._sent is None:
            return
        wanted = {**self._session.turn_options(), **own}
        changes = {name: value for name, value in wanted.items() if self._sent.get(name) != value}
        if changes:
            self._sent |= changes
            self._clock.request(turn=changes)

    def restore(self, *names: str) -> None:
        """Send options again that a tick has changed by its own options."""
        assert self._sent is not None
        self._clock.request(turn={name: self._sent[name] for name in names})

    def apply(self, tick: TickIn) -> None:
        """Apply the options of a tick whose answer arrives: the engine has applied them."""
        self._applied |= {**tick.options, **(tick.controls.turn or {})}

    @property
    def creates_responses(self) -> bool:
        """True if the engine answers a user's turn without a request."""
        return bool(self._applied.get("create_response", True))

    @property
    def modality(self) -> str:
        """The modality of an answer without a request."""
        return "audio" if self._applied.get("speech", True) else "text"

    @property
    def detects_turns(self) -> bool:
        """True if the engine detects turns by voice activity."""
        return bool(self._applied.get("detection", "server_vad") == "server_vad")
