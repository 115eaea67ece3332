"""The messages of a client, in order, at the rate at which the bridge handles them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine
from typing import Any

from frontend.session.channel import Channel

MAX_BYTES = 2**21  # stop reading the channel above this number of queued bytes: a minute of audio
MESSAGE_BYTES = 64  # overhead of a queued message
MIN_CHARACTERS = 10  # least number of characters that a text message counts as
CUT_OFF = 1006  # close code of a WebSocket without a close frame (RFC 6455, section 7.4.1)
BURST_S = 5.0  # seconds of text that a client may send at once


class Inbox:
    """Reads ahead, within bounds, so that the bridge notices at once that a client has left."""

    def __init__(self, text_per_second: float):
        self._waiting: deque[bytes | str] = deque()
        self._bytes = 0
        self.received = 0  # messages since the beginning
        self._over = asyncio.Event()
        self._changed = asyncio.Event()
        self._may_read = asyncio.Event()
        self._may_read.set()
        self._rate = text_per_second
        self._characters, self._counted_s = BURST_S * text_per_second, 0.0  # characters left, and since when

    @property
    def is_over(self) -> bool:
        """True once the client has left or its messages are ignored."""
        return self._over.is_set()

    async def read(self, channel: Channel) -> int:
        """Read until this client leaves; returns its close code, or `CUT_OFF`."""
        while not self.is_over:
            await self._may_read.wait()
            message = await channel.receive()
            if message["type"] == "websocket.disconnect":
                return int(message.get("code") or CUT_OFF)
            audio = message.get("bytes")
            data = audio if audio is not None else message["text"]
            self._waiting.append(data)
            self.received += 1
            self._bytes += len(data) + MESSAGE_BYTES
            self._changed.set()
            if self._bytes > MAX_BYTES:
                self._may_read.clear()
        return CUT_OFF

    def close(self) -> None:
        """Drop the messages that wait; from now on `take` returns None."""
        self._over.set()
        self._waiting.clear()
        self._bytes = 0
        self._changed.set()
        self._may_read.set()

    async def take(self) -> bytes | str | None:
        """Return the next message; None if the client has left."""
        while not self._waiting:
            if self.is_over:
                return None
            self._changed.clear()
            await self._changed.wait()
        message = self._waiting.popleft()
        self._bytes -= len(message) + MESSAGE_BYTES
        if self._bytes <= MAX_BYTES // 2:
            self._may_read.set()
        return message

    async def unless_over(self, awaited: Coroutine[Any, Any, Any]) -> None:
        """Await a coroutine, at the longest until the client leaves."""
        waiting, over = asyncio.ensure_future(awaited), asyncio.ensure_future(self._over.wait())
        try:
            await asyncio.wait((waiting, over), return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
            over.cancel()

    async def pace(self, characters: int) -> None:
        """Wait until the client's rate limit permits a text of this length; audio has no limit."""
        now_s = asyncio.get_running_loop().time()
        max_characters = BURST_S * self._rate
        self._characters = min(max_characters, self._characters + (now_s - self._counted_s) * self._rate)
        self._counted_s = now_s
        self._characters -= min(max_characters, max(MIN_CHARACTERS, characters))
        if self._characters < 0:
            await self.unless_over(asyncio.sleep(-self._characters / self._rate))
