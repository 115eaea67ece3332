"""The transport of a protocol's events: a WebSocket, or the data channel of a WebRTC call."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, Protocol


class Source(Protocol):
    """The receiving side of a channel: ASGI messages, as starlette's WebSocket returns them."""

    def receive(self) -> Awaitable[Any]:
        """Return the client's next message."""


class Channel(Source, Protocol):
    """The part of starlette's WebSocket that a session uses."""

    def send_text(self, data: str) -> Awaitable[None]:
        """Send an event; returns when the next one may be sent."""

    def close(self, code: int = 1000) -> Awaitable[None]:
        """Close the channel."""
