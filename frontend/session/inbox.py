"""What a client sends, in order, as fast as it is dealt with."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine
from typing import Any

from frontend.session.channel import Source

MAX_BYTES = 2**21  # that wait before no more is read of the client: a minute of sound
MESSAGE_BYTES = 64  # that a message costs beside its own
MIN_CHARACTERS = 10  # of text, that a message counts as
CUT_OFF = 1006  # close code of a WebSocket that ended without one (RFC 6455, section 7.4.1)
BURST_S = 5.0  # seconds of text that may come at once


class Inbox:
    """Reads ahead, within bounds, so that a client that is gone is noticed at once, and what it left is dropped."""

    def __init__(self, text_per_second: float):
        self._waiting: deque[bytes | str] = deque()
        self._bytes = 0
        self.received = 0  # messages, ever
        self._over = asyncio.Event()
        self._came = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._rate = text_per_second
        self._left, self._left_at_s = BURST_S * text_per_second, 0.0  # characters that may come at once

    @property
    def is_over(self) -> bool:
        """Whether nobody is there any more, or what they send is not wanted."""
        return self._over.is_set()

    async def read(self, source: Source) -> int:
        """Reads until this client is gone; returns its close code, or one that tells of no goodbye."""
        while not self.is_over:
            await self._room.wait()
            message = await source.receive()
            if message["type"] == "websocket.disconnect":
                return int(message.get("code") or CUT_OFF)
            sound = message.get("bytes")
            data = sound if sound is not None else message["text"]
            self._waiting.append(data)
            self.received += 1
            self._bytes += len(data) + MESSAGE_BYTES
            self._came.set()
            if self._bytes > MAX_BYTES:
                self._room.clear()
        return CUT_OFF

    def close(self) -> None:
        """Drops what waits; `take` gives None from now on."""
        self._over.set()
        self._waiting.clear()
        self._bytes = 0
        self._came.set()
        self._room.set()

    async def take(self) -> bytes | str | None:
        """The next message; None when the client is gone."""
        while not self._waiting:
            if self.is_over:
                return None
            self._came.clear()
            await self._came.wait()
        message = self._waiting.popleft()
        self._bytes -= len(message) + MESSAGE_BYTES
        if self._bytes <= MAX_BYTES // 2:
            self._room.set()
        return message

    async def unless_over(self, awaited: Coroutine[Any, Any, Any]) -> None:
        """Waits for something, but not longer than the client is there."""
        waiting, over = asyncio.ensure_future(awaited), asyncio.ensure_future(self._over.wait())
        try:
            await asyncio.wait((waiting, over), return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
            over.cancel()

    async def pace(self, characters: int) -> None:
        """Waits until a client that sends at most so much text a second would have sent this; sound needs no pace."""
        now = asyncio.get_running_loop().time()
        most = BURST_S * self._rate
        self._left = min(most, self._left + (now - self._left_at_s) * self._rate)
        self._left_at_s = now
        self._left -= min(most, max(MIN_CHARACTERS, characters))
        if self._left < 0:
            await self.unless_over(asyncio.sleep(-self._left / self._rate))
