"""Unmodified client of the `openai` package, connected to a server, and sentences that the client sends."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import soxr
from openai import AsyncOpenAI

from tests.conftest import Served
from training.judges.flite import synthesize

CHUNK = 960  # bytes of 20 ms at 24 kHz
ORDER = "Can I get a medium dark roast latte with soy milk?"
CHANGE = "Make it large."


def pcm24(words: str, silence_s: float = 1.0) -> bytes:
    """Return a sentence by a voice that is not in the training data, and silence: PCM16 at 24 kHz."""
    spoken = soxr.resample(synthesize(words, "rms"), 16_000, 24_000).astype(np.int16)
    return bytes(spoken.tobytes() + bytes(int(silence_s * 24_000) * 2))


class StockClient:
    """Connection of the `openai` package, and the events that the connection has received."""

    def __init__(self, connection: Any):
        self.connection = connection
        self.events: list[Any] = []
        self._changed = asyncio.Event()

    async def listen(self) -> None:
        async for event in self.connection:
            self.events.append(event)
            self._changed.set()

    async def send_audio(self, pcm: bytes) -> None:
        """Send audio at the pace of a microphone."""
        begun_s = asyncio.get_running_loop().time()
        for start in range(0, len(pcm), CHUNK):
            audio = base64.b64encode(pcm[start : start + CHUNK]).decode()
            await self.connection.input_audio_buffer.append(audio=audio)
            ahead_s = start / 48_000 - (asyncio.get_running_loop().time() - begun_s)
            await asyncio.sleep(max(0.0, ahead_s))

    async def wait_for(self, kind: str, after: int = 0) -> Any:
        """Return the first event of a kind that follows the first `after` events."""

        async def found() -> Any:
            while True:
                self._changed.clear()
                for event in self.events[after:]:
                    if event.type == kind:
                        return event
                await self._changed.wait()

        return await asyncio.wait_for(found(), 30)

    def kinds(self, after: int = 0) -> list[str]:
        return [event.type for event in self.events[after:] if not event.type.endswith(".delta")]


@contextlib.asynccontextmanager
async def connected(served: Served, **session: Any) -> AsyncIterator[StockClient]:
    """Connect a client, and update its session if `session` has fields."""
    package = AsyncOpenAI(api_key="none", base_url=f"{served.http}/v1")
    async with package.realtime.connect(model="gpt-realtime") as connection:
        client = StockClient(connection)
        listening = asyncio.create_task(client.listen())
        await client.wait_for("session.created")
        if session:
            await connection.session.update(session={"type": "realtime", **session})
            await client.wait_for("session.updated")
        try:
            yield client
        finally:
            listening.cancel()
