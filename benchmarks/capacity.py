"""How many conversations a replica holds, from measured ticks: a queue of microphones before an engine that batches.

Every conversation sends a tick each `tick_ms`, in no step with the others. The engine takes whatever waits when it is
free, and takes as long for it as was measured for so many at once. What the other stages add is taken as constant.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

QUEUE_DELAY_S = 0.0005  # triton.queue_delay_us: that a tick waits for others
Z99 = 2.3263  # standard deviations from the median to the 99th percentile of a normal distribution
SIMULATED_TICKS = 300  # of each conversation
STAGGERS = 3  # random sets of microphones' phases


class CapacityError(RuntimeError):
    """A file holds no measured ticks."""


@dataclass(frozen=True)
class Measured:
    """Ticks of so many conversations, as `./sca bench` writes them."""

    conversations: int
    p50_ms: float
    p99_ms: float
    outside_ms: float  # mean of what is not the engine's: mel, code2wav, Triton, transport


def read_measured(file: Path) -> tuple[list[Measured], int, str]:
    """The rows of a bench's JSON but for transformers', the length of a tick in ms, and what measured them.

    Raises `CapacityError`.
    """
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        rows = [row for row in told["rows"] if row["what"] != "transformers"]
        measured = [
            Measured(
                int(row["conversations"]),
                float(row["p50_ms"]),
                float(row["p99_ms"]),
                sum(row.get("stages_ms", {}).get(stage, 0.0) for stage in ("mel", "code2wav", "Triton", "transport")),
            )
            for row in rows
        ]
        tick_ms, by = int(rows[0]["tick_ms"]), f"{told['machine']}, {told['date']}, {told['command']}"
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise CapacityError(f"{file} holds no rows of a bench: {error!r} (./sca bench engine --paced)") from error
    return sorted(measured, key=lambda row: row.conversations), tick_ms, by


@dataclass(frozen=True)
class TickTimes:
    """How long the engine takes for a batch, between and beyond the measured sizes in proportion."""

    sizes: tuple[int, ...]
    medians_s: tuple[float, ...]
    spreads: tuple[float, ...]  # standard deviations of the logarithm
    outside_s: float = 0.0  # what a tick takes outside of the engine

    @classmethod
    def of(cls, measured: Sequence[Measured], outside_s: float = 0.0) -> TickTimes:
        """From rows in the order of their conversations."""
        return cls(
            tuple(row.conversations for row in measured),
            tuple(row.p50_ms / 1000 for row in measured),
            tuple(float(np.log(max(1.0, row.p99_ms / row.p50_ms)) / Z99) for row in measured),
            outside_s,
        )

    def draw(self, size: int, chance: np.random.Generator) -> float:
        """Seconds that a batch of a size takes, this time."""
        median = float(np.interp(size, self.sizes, self.medians_s))
        if size > self.sizes[-1]:
            median *= size / self.sizes[-1]
        return median * float(np.exp(chance.normal() * np.interp(size, self.sizes, self.spreads)))


def latencies(times: TickTimes, conversations: int, tick_s: float, seed: int = 0) -> np.ndarray:
    """Seconds from when each tick is due to its answer, the first few left out: [ticks]."""
    chance = np.random.default_rng(seed)
    found = []
    for _ in range(STAGGERS):
        phases = chance.uniform(0, tick_s, conversations)
        due_s = np.sort((phases[:, None] + tick_s * np.arange(SIMULATED_TICKS)).ravel())
        free_s, first = 0.0, 0
        done_s = np.empty_like(due_s)
        while first < len(due_s):
            begin_s = max(free_s, due_s[first] + QUEUE_DELAY_S)
            last = int(np.searchsorted(due_s, begin_s, side="right"))
            last = min(max(last, first + 1), first + conversations)  # one of each: the next waits for its answer
            free_s = begin_s + times.draw(last - first, chance)
            done_s[first:last] = free_s
            first = last
        found.append((done_s - due_s)[len(due_s) // 10 :] + times.outside_s)
    return np.concatenate(found)


def max_conversations(times: TickTimes, tick_s: float, p99_s: float, slots: int) -> int:
    """The most whose 99th percentile stays within `p99_s`, up to `slots`; 0 if not even one's does."""

    def holds(count: int) -> bool:
        return float(np.percentile(latencies(times, count, tick_s), 99)) <= p99_s

    below, above = 0, slots + 1
    while above - below > 1:
        middle = (below + above) // 2
        below, above = (middle, above) if holds(middle) else (below, middle)
    return below
