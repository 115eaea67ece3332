"""A running Triton over gRPC, at the pace of microphones: every conversation sends a tick when it is due."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence

import numpy as np

from benchmarks.report import Row
from config import Settings
from frontend.triton import TickError, TickIn, TritonLink, new_sequence_id

WARM_UP_TICKS = 4


def bench_triton(settings: Settings, sessions: Sequence[int], seconds: float) -> list[Row]:
    """A row for each number of sessions. Raises `TickError` when Triton refuses one."""
    ticks = max(1, round(seconds * 1000 / settings.audio.tick_ms))
    return [asyncio.run(_converse_at_once(settings, count, ticks)) for count in sessions]


async def _converse_at_once(settings: Settings, count: int, ticks: int) -> Row:
    link = TritonLink(settings)
    begin = time.monotonic() + 0.5
    tick_s = settings.audio.tick_ms / 1000
    # Microphones are not in step: the conversations' ticks are due at times spread over one tick.
    conversations = [_converse(link, settings, begin + tick_s * i / count, ticks) for i in range(count)]
    latencies = [latency for each in await asyncio.gather(*conversations) for latency in each]
    await link.close()
    return Row.of("triton", count, settings.audio.tick_ms, latencies, paced=True)


async def _converse(link: TritonLink, settings: Settings, begin: float, ticks: int) -> list[float]:
    """Latencies of one conversation's ticks, each from when it was due."""
    tick_s = settings.audio.tick_ms / 1000
    samples = np.random.RandomState(0).randint(-8000, 8000, settings.audio.input_samples).astype(np.int16)
    total = WARM_UP_TICKS + ticks
    due = [begin + tick_s * tick for tick in range(total)]

    async def microphone() -> AsyncIterator[TickIn]:
        for tick in range(total):
            await asyncio.sleep(max(0.0, due[tick] - time.monotonic()))
            yield TickIn(samples.tobytes(), start=tick == 0, end=tick == total - 1)

    latencies: list[float] = []
    async for answer in link.converse(new_sequence_id(), microphone()):
        if isinstance(answer, TickError):
            raise answer
        latencies.append(time.monotonic() - due[len(latencies)])
    return latencies[WARM_UP_TICKS:]
