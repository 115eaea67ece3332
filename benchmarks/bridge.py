"""Ticks over the whole path of a browser: WebSocket, bridge, Triton, at the pace of microphones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import numpy as np

from benchmarks.paced import Microphone, measure
from benchmarks.paced_client import PacedClient, paced_client
from benchmarks.row import Row
from config import Settings


def bench_bridge(settings: Settings, conversations: Sequence[int], seconds: float) -> list[Row]:
    """Measure each number of conversations. Raises `DialogueError` with the bridge's error if it refuses one."""
    return [asyncio.run(_measure(settings, count, seconds)) for count in conversations]


async def _measure(settings: Settings, count: int, seconds: float) -> Row:
    async def converse(microphone: Microphone) -> AsyncIterator[None]:
        async with paced_client(f"{settings.bridge.url}/ws/pcm16") as client:
            sending = asyncio.create_task(_send(client, microphone))
            responses = 0
            async for message in client:  # ends when the bridge has closed: the slot is free again
                # The `end` is a tick without a counterpart at the microphone.
                if isinstance(message, np.ndarray) and responses < microphone.ticks:
                    yield
                    responses += 1
            await sending

    return await measure("bridge", settings, count, seconds, converse)


async def _send(client: PacedClient, microphone: Microphone) -> None:
    async for _ in microphone:
        await client.socket.send(microphone.pcm.tobytes())
    await client.send_control("end")
