"""The data channel of a call, as a `Channel` of a session."""

from __future__ import annotations

import asyncio
from typing import Any

from aiortc import RTCDataChannel

LABEL = "oai-events"
MAX_WAITING = 2000  # events of a client that have not been read
MAX_WAITING_BYTES = 4 * 2**20  # bytes of these events
MAX_BUFFERED = 2**20  # the next event waits above this number of bytes on their way to the client
LOOK_S = 0.02  # interval between checks of that number


class DataChannel:
    """The data channel, which the client opens; messages wait until then."""

    def __init__(self, is_offered: bool):
        """Wait for the channel if the client offers one (`is_offered`); otherwise the client receives no events."""
        self._is_offered = is_offered
        self._channel: RTCDataChannel | None = None
        self._opened = asyncio.Event()
        self._received: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._waiting_bytes = 0
        self._is_closed = False

    def open(self, channel: RTCDataChannel) -> None:
        """Use a channel that the client has opened; channels with other labels are ignored."""
        if channel.label != LABEL or self._channel:
            return
        self._channel = channel
        channel.on("message", self._take)
        channel.on("close", self.hang_up)
        self._opened.set()

    async def opened(self) -> None:
        """Return when events can be sent, at once if the client wants none, or when the client has hung up."""
        if self._is_offered:
            await self._opened.wait()

    def hang_up(self) -> None:
        """Note that the client has left; its earlier messages are still read."""
        if not self._is_closed:
            self._is_closed = True
            self._opened.set()
            self._received.put_nowait({"type": "websocket.disconnect", "code": 1000})

    async def receive(self) -> dict[str, Any]:
        """Return the client's next message; see `Channel`."""
        message = await self._received.get()
        self._waiting_bytes -= len(message.get("text") or message.get("bytes") or "")
        return message

    async def send_text(self, data: str) -> None:
        """Send an event; see `Channel`."""
        await self.opened()
        if self._channel is None:  # the client wants no events, or has left
            return
        while self._channel.readyState == "open" and self._channel.bufferedAmount > MAX_BUFFERED:
            await asyncio.sleep(LOOK_S)
        if self._channel.readyState == "open":
            self._channel.send(data)

    async def close(self, code: int = 1000) -> None:
        """Close the channel after the messages on their way; see `Channel`."""
        while self._channel and self._channel.readyState == "open" and self._channel.bufferedAmount:
            await asyncio.sleep(LOOK_S)
        if self._channel:
            self._channel.close()

    def _take(self, message: bytes | str) -> None:
        if self._is_closed:
            return
        self._waiting_bytes += len(message)
        if self._received.qsize() >= MAX_WAITING or self._waiting_bytes > MAX_WAITING_BYTES:
            self.hang_up()  # SCTP cannot make the client wait
            return
        kind = "text" if isinstance(message, str) else "bytes"
        self._received.put_nowait({"type": "websocket.receive", kind: message})
