"""The transport of a protocol's events: a WebSocket, or the data channel of a WebRTC call."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, Protocol

from fastapi import WebSocketDisconnect


class Channel(Protocol):
    """The part of starlette's WebSocket that a session uses."""

    def receive(self) -> Awaitable[Any]:
        """Return the client's next message, as an ASGI message."""

    def send_text(self, data: str) -> Awaitable[None]:
        """Send an event; returns when the next one may be sent."""

    def close(self, code: int = 1000) -> Awaitable[None]:
        """Close the channel."""


async def close(channel: Channel, code: int, within_s: float) -> None:
    """Close a channel that may be closed or stalled, in at most `within_s`."""
    try:
        await asyncio.wait_for(channel.close(code), within_s)
    except (WebSocketDisconnect, RuntimeError, asyncio.TimeoutError):
        return
