"""A client of /ws/pcm16 that sends audio at the pace of a microphone."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

import numpy as np
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

from config.settings import INPUT_HZ
from training.judges.dialogue import DialogueError

FRAME_MS = 20  # audio that a microphone sends in one message
FRAME_S = FRAME_MS / 1000
FRAME = INPUT_HZ * FRAME_MS // 1000  # samples
RETRY_S = 0.1

Message = np.ndarray | dict[str, Any]  # a tick's audio, int16 at 24 kHz, or an event


async def pace(interval_s: float, count: int, begin_s: float) -> AsyncIterator[int]:
    """Yield 0 to `count` - 1: number `n` at `begin_s + n * interval_s` on the monotonic clock, or later if blocked."""
    for number in range(count):
        await asyncio.sleep(max(0.0, begin_s + number * interval_s - time.monotonic()))
        yield number


class PacedClient:
    """One conversation; made by `paced_client`."""

    def __init__(self, socket: ClientConnection):
        self.socket = socket

    async def send_audio(self, samples: np.ndarray, begin_s: float | None = None, frame: int = FRAME) -> None:
        """Send int16 samples at 16 kHz in frames, each when its last sample has been spoken.

        `begin_s`: time of the first sample on the monotonic clock; None: now.
        """
        frame_s = frame / INPUT_HZ
        begin_s = time.monotonic() if begin_s is None else begin_s
        async for number in pace(frame_s, -(-len(samples) // frame), begin_s + frame_s):
            await self.socket.send(samples[number * frame : (number + 1) * frame].tobytes())

    async def send_control(self, kind: str, **details: Any) -> None:
        """Send a control."""
        await self.socket.send(json.dumps({"type": kind, **details}))

    async def receive(self, timeout_s: float) -> Message:
        """Return the next message. Raises `DialogueError` for an `error` event, and `asyncio.TimeoutError`."""
        return _parsed(await asyncio.wait_for(self.socket.recv(), timeout_s))

    async def __aiter__(self) -> AsyncIterator[Message]:
        """Yield messages until the bridge closes the connection. Raises `DialogueError` for an `error` event."""
        async for message in self.socket:
            yield _parsed(message)


def _parsed(message: str | bytes) -> Message:
    if isinstance(message, bytes):
        return np.frombuffer(message, np.int16)
    event: dict[str, Any] = json.loads(message)
    if event["type"] == "error":
        raise DialogueError(event["message"], event.get("code", ""))
    return event


@asynccontextmanager
async def paced_client(url: str, slot_timeout_s: float = 0.0) -> AsyncIterator[PacedClient]:
    """Open a conversation, retrying for `slot_timeout_s` while the server is full. Raises `InvalidStatus`."""
    deadline_s = time.monotonic() + slot_timeout_s
    while True:
        try:
            socket = await connect(url, max_size=None, proxy=None)
            break
        except InvalidStatus as refusal:
            if refusal.response.status_code != HTTPStatus.SERVICE_UNAVAILABLE or time.monotonic() > deadline_s:
                raise
            await asyncio.sleep(RETRY_S)
    async with socket:
        yield PacedClient(socket)
