"""Load of `conversations` microphones: each sends a tick when the tick is due, and its response is timed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.paced_client import pace
from benchmarks.row import Row
from benchmarks.server import Counters
from config import Settings

WARM_UP_TICKS = 4
LOUDNESS = 8000  # peak of the noise that is sent
LEAD_S = 0.5  # time from the start of the clients to the first tick


@dataclass(frozen=True)
class Microphone:
    """The ticks of one conversation and their times."""

    pcm: np.ndarray  # a tick's samples, int16 at 16 kHz: every tick sends the same
    begin_s: float  # on the monotonic clock
    tick_s: float
    ticks: int

    def due_s(self, tick: int) -> float:
        """Return the time at which the last sample of a tick has been spoken."""
        return self.begin_s + tick * self.tick_s

    def __aiter__(self) -> AsyncIterator[int]:
        """Yield the number of each tick when it is due."""
        return pace(self.tick_s, self.ticks, self.begin_s)


Converse = Callable[[Microphone], AsyncIterator[None]]  # yields at every response, in order


async def measure(what: str, settings: Settings, conversations: int, seconds: float, converse: Converse) -> Row:
    """Measure `conversations` conversations at once, whose first ticks are spread evenly over one tick."""
    tick_s = settings.audio.tick_ms / 1000
    ticks = WARM_UP_TICKS + max(1, round(seconds / tick_s))
    random = np.random.RandomState(0)
    shape = (conversations, settings.audio.input_samples)
    noises = random.randint(-LOUDNESS, LOUDNESS, shape).astype(np.int16)  # different input in each conversation
    begin = time.monotonic() + LEAD_S
    microphones = [
        Microphone(noise, begin + tick_s * i / conversations, tick_s, ticks) for i, noise in enumerate(noises)
    ]
    before = Counters.read(settings)
    measured = await asyncio.gather(*(_latencies(microphone, converse) for microphone in microphones))
    after = Counters.read(settings)
    mean_ms = 1000 * sum(map(sum, measured)) / sum(map(len, measured))
    latencies = [latency for each in measured for latency in each[WARM_UP_TICKS:]]
    stages = after.stages_since(before, mean_ms)
    return Row.of(
        what, conversations, settings.audio.tick_ms, latencies, stages, paced=True, memory_bytes=after.engine_bytes
    )


async def _latencies(microphone: Microphone, converse: Converse) -> Sequence[float]:
    """Return the seconds from each tick's due time to its response."""
    latencies: list[float] = []
    async for _ in converse(microphone):
        latencies.append(time.monotonic() - microphone.due_s(len(latencies)))
    if len(latencies) != microphone.ticks:
        raise RuntimeError(f"expected {microphone.ticks} responses, got {len(latencies)}")
    return latencies
