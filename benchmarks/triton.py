"""Ticks of a running Triton over gRPC, at the pace of microphones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from benchmarks.paced import Microphone, measure
from benchmarks.row import Row
from config import Settings
from frontend.tick import TickError, TickIn, new_sequence_id
from frontend.triton import TritonLink


def bench_triton(settings: Settings, conversations: Sequence[int], seconds: float) -> list[Row]:
    """Measure each number of conversations. Raises `TickError` if Triton refuses one."""
    return [asyncio.run(_measure(settings, count, seconds)) for count in conversations]


async def _measure(settings: Settings, count: int, seconds: float) -> Row:
    link = TritonLink(settings)

    async def ticks(microphone: Microphone) -> AsyncIterator[TickIn]:
        async for tick in microphone:
            yield TickIn(microphone.pcm.tobytes(), start=tick == 0, end=tick == microphone.ticks - 1)

    async def converse(microphone: Microphone) -> AsyncIterator[None]:
        async for response in link.converse(new_sequence_id(), ticks(microphone)):
            if isinstance(response, TickError):
                raise response
            yield

    try:
        return await measure("triton", settings, count, seconds, converse)
    finally:
        await link.close()
