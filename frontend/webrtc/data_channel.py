"""What carries the protocol's events: a WebSocket, or the data channel of a WebRTC call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from aiortc import RTCDataChannel, RTCSctpTransport
from aiortc.rtcsctptransport import DataChunk

LABEL = "oai-events"
MAX_WAITING = 2000  # events of a client that have not been read,
MAX_WAITING_BYTES = 4 * 2**20  # and their length
MAX_STREAMS = 16  # that a client sends on; the protocol has one
MAX_FRAGMENTS = 1000  # of messages that are not whole, on one of them: a message has at most 64
MAX_BUFFERED = 2**20  # bytes on their way to a client, past which the next event waits
LOOK_S = 0.02  # between two looks at what is on its way


def bound_fragments(transport: RTCSctpTransport, hang_up: Callable[[], None]) -> None:
    """Hangs up on a client whose messages do not end: aiortc keeps their fragments, and looks through all at each."""
    receive = transport._receive_data_chunk

    async def receive_some(chunk: DataChunk) -> None:
        streams = transport._inbound_streams
        if len(streams) > MAX_STREAMS or len(transport._get_inbound_stream(chunk.stream_id).reassembly) > MAX_FRAGMENTS:
            hang_up()
        else:
            await receive(chunk)

    transport._receive_data_chunk = receive_some  # type: ignore[method-assign]


class DataChannel:
    """The data channel of a call, which the client opens; until it is open, what is sent waits."""

    def __init__(self, is_offered: bool):
        """`is_offered`: else the client sends sound alone, and hears no events."""
        self._is_offered = is_offered
        self._channel: RTCDataChannel | None = None
        self._opened = asyncio.Event()
        self._came: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._waiting_bytes = 0
        self._is_gone = False

    def open(self, channel: RTCDataChannel) -> None:
        """The client has opened a channel; another than the protocol's is left alone."""
        if channel.label != LABEL or self._channel:
            return
        self._channel = channel
        channel.on("message", self._take)
        channel.on("close", self.hang_up)
        self._opened.set()

    async def opened(self) -> None:
        """Returns when events can go, if the client wants any, or when it has hung up."""
        if self._is_offered:
            await self._opened.wait()

    def hang_up(self) -> None:
        """The client is gone: what it sent before is still read."""
        if not self._is_gone:
            self._is_gone = True
            self._opened.set()
            self._came.put_nowait({"type": "websocket.disconnect", "code": 1000})

    async def receive(self) -> dict[str, Any]:
        """See `Channel`."""
        message = await self._came.get()
        self._waiting_bytes -= len(message.get("text") or message.get("bytes") or "")
        return message

    async def send_text(self, data: str) -> None:
        """See `Channel`."""
        await self.opened()
        if self._channel is None:  # it wants no events, or is gone
            return
        while self._channel.readyState == "open" and self._channel.bufferedAmount > MAX_BUFFERED:
            await asyncio.sleep(LOOK_S)
        if self._channel.readyState == "open":
            self._channel.send(data)

    async def close(self, code: int = 1000) -> None:
        """See `Channel`."""
        while self._channel and self._channel.readyState == "open" and self._channel.bufferedAmount:
            await asyncio.sleep(LOOK_S)
        if self._channel:
            self._channel.close()

    def _take(self, message: bytes | str) -> None:
        if self._is_gone:
            return
        self._waiting_bytes += len(message)
        if self._came.qsize() >= MAX_WAITING or self._waiting_bytes > MAX_WAITING_BYTES:
            self.hang_up()  # SCTP has no way to tell it to wait
            return
        kind = "text" if isinstance(message, str) else "bytes"
        self._came.put_nowait({"type": "websocket.receive", kind: message})
