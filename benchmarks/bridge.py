"""The whole way of a browser, over WebSocket, at the pace of microphones."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence

from websockets.asyncio.client import ClientConnection, connect

from benchmarks.paced import Microphone, measure
from benchmarks.report import Row
from config import Settings


def bench_bridge(settings: Settings, conversations: Sequence[int], seconds: float) -> list[Row]:
    """A row for each number of conversations. Raises `RuntimeError` with what the bridge said when it refuses one."""
    return [asyncio.run(_measure(settings, count, seconds)) for count in conversations]


async def _measure(settings: Settings, count: int, seconds: float) -> Row:
    url = f"{settings.bridge.url}/ws/pcm16"

    async def converse(microphone: Microphone) -> AsyncIterator[None]:
        async with connect(url, max_size=None, proxy=None) as socket:
            saying = asyncio.create_task(_say(socket, microphone))
            answers = 0
            async for message in socket:  # until the bridge has closed: its place is free again then
                if not isinstance(message, bytes):
                    event = json.loads(message)
                    if event["type"] == "error":
                        raise RuntimeError(event["message"])
                elif answers < microphone.ticks:  # one more follows the end, which is a tick of its own
                    yield
                    answers += 1
            await saying

    return await measure("bridge", settings, count, seconds, converse)


async def _say(socket: ClientConnection, microphone: Microphone) -> None:
    async for _ in microphone:
        await socket.send(microphone.pcm)
    await socket.send(json.dumps({"type": "end"}))
