"""Microphones: every conversation sends a tick when it is due, and notes when its answer came."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.report import Row
from benchmarks.server import Counters
from config import Settings

WARM_UP_TICKS = 4
LOUDNESS = 8000  # of the noise that is sent


@dataclass(frozen=True)
class Microphone:
    """One conversation's ticks of sound, each when it is due."""

    pcm: bytes
    begin_s: float  # on the monotonic clock
    tick_s: float
    ticks: int

    def due_s(self, tick: int) -> float:
        """When the last sample of a tick has been spoken."""
        return self.begin_s + tick * self.tick_s

    async def __aiter__(self) -> AsyncIterator[int]:
        """The number of each tick, when it is due."""
        for tick in range(self.ticks):
            await asyncio.sleep(max(0.0, self.due_s(tick) - time.monotonic()))
            yield tick


Converse = Callable[[Microphone], AsyncIterator[None]]  # yields at every answer, in order


async def measure(what: str, settings: Settings, conversations: int, seconds: float, converse: Converse) -> Row:
    """A row for so many conversations at once. Microphones are not in step: they begin spread over one tick."""
    tick_s = settings.audio.tick_ms / 1000
    ticks = WARM_UP_TICKS + max(1, round(seconds / tick_s))
    random = np.random.RandomState(0)
    shape = (conversations, settings.audio.input_samples)
    noises = random.randint(-LOUDNESS, LOUDNESS, shape).astype(np.int16)  # another for each, as people say other things
    begin = time.monotonic() + 0.5
    microphones = [
        Microphone(noise.tobytes(), begin + tick_s * i / conversations, tick_s, ticks) for i, noise in enumerate(noises)
    ]
    before = Counters.read(settings)
    heard = await asyncio.gather(*(_latencies(microphone, converse) for microphone in microphones))
    after = Counters.read(settings)
    mean_ms = 1000 * sum(map(sum, heard)) / sum(map(len, heard))
    latencies = [latency for each in heard for latency in each[WARM_UP_TICKS:]]
    stages = after.stages_since(before, mean_ms)
    return Row.of(
        what, conversations, settings.audio.tick_ms, latencies, stages, paced=True, memory_bytes=after.engine_bytes
    )


async def _latencies(microphone: Microphone, converse: Converse) -> Sequence[float]:
    """Seconds from when each tick was due to its answer."""
    latencies: list[float] = []
    async for _ in converse(microphone):
        latencies.append(time.monotonic() - microphone.due_s(len(latencies)))
    if len(latencies) != microphone.ticks:
        raise RuntimeError(f"{len(latencies)} answers came, expected {microphone.ticks}")
    return latencies
