"""The messages that wait for a client, written by one task."""

from __future__ import annotations

import asyncio
from collections import deque

from fastapi import WebSocketDisconnect

from frontend.session.channel import Channel, close
from frontend.session.ended import EVENT_TOO_LONG, READS_NOTHING, CloseCode, Ended

MAX_MESSAGES = 2000
MAX_BYTES = 4 * 2**20  # a minute of PCM16 at 24 kHz in base64


class Outbox:
    """A queue to a channel, bounded by number and bytes of the waiting messages and by the time of one write."""

    def __init__(
        self, channel: Channel, read_timeout_s: float, max_messages: int = MAX_MESSAGES, max_bytes: int = MAX_BYTES
    ):
        """Begin with an empty queue; the client must accept a message within `read_timeout_s`."""
        self._channel, self._read_timeout_s = channel, read_timeout_s
        self._max_messages, self._max_bytes = max_messages, max_bytes
        self._waiting: deque[tuple[str, int]] = deque()  # messages with their sizes in bytes
        self._bytes = 0
        self._changed = asyncio.Event()
        self._is_finished = False

    def put(self, message: str) -> bool:
        """Append a message. Drops all messages and returns False if a bound is exceeded: the client reads nothing."""
        size = len(message.encode())
        if len(self._waiting) >= self._max_messages or (self._waiting and self._bytes + size > self._max_bytes):
            self._waiting.clear()
            self.finish()
            return False
        self._waiting.append((message, size))
        self._bytes += size
        self._changed.set()
        return True

    def finish(self) -> None:
        """Let `write` return after the messages that wait."""
        self._is_finished = True
        self._changed.set()

    async def write(self) -> Ended | None:
        """Send messages until `finish` or until the client is lost; returns the reason if the client is at fault."""
        while True:
            while not self._waiting:
                if self._is_finished:
                    return None
                self._changed.clear()
                await self._changed.wait()
            message, size = self._waiting.popleft()
            self._bytes -= size
            try:
                await asyncio.wait_for(self._channel.send_text(message), self._read_timeout_s)
            except asyncio.TimeoutError:
                return READS_NOTHING
            except (WebSocketDisconnect, RuntimeError):  # starlette raises RuntimeError for a closed WebSocket
                return None
            except ValueError:  # longer than a data channel's messages
                return EVENT_TOO_LONG

    async def close(self, code: CloseCode) -> None:
        """Close the channel."""
        await close(self._channel, code, self._read_timeout_s)
