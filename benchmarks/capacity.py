"""Capacity of a replica from measured ticks: a queue of microphones in front of an engine that batches.

Every conversation sends a tick each `tick_ms`, with a random phase. When the engine is free it processes every waiting
tick, in the time that was measured for a batch of this size. The time of the other stages is taken as constant.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

QUEUE_DELAY_S = 0.0005  # triton.queue_delay_us: time that a tick waits for others to join its batch
Z99 = 2.3263  # standard deviations from the median to the 99th percentile of a normal distribution
SIMULATED_TICKS = 300  # ticks of each conversation
PHASE_SETS = 3  # sets of random phases
OTHER_STAGES = ("mel", "code2wav", "Triton", "transport")


class CapacityError(RuntimeError):
    """A file without rows of a benchmark."""


@dataclass(frozen=True)
class Measured:
    """Tick times with `conversations` conversations at once, as `./sca bench` writes them."""

    conversations: int
    p50_ms: float
    p99_ms: float
    outside_ms: float  # mean time of the stages outside the engine: mel, code2wav, Triton, transport


def read_measured(file: Path) -> tuple[list[Measured], int, str]:
    """Return the rows of a benchmark's JSON except transformers', the tick length in ms, and the measurement's origin.

    Raises `CapacityError`.
    """
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        rows = [row for row in record["rows"] if row["what"] != "transformers"]
        measured = [
            Measured(
                int(row["conversations"]),
                float(row["p50_ms"]),
                float(row["p99_ms"]),
                sum(row.get("stages_ms", {}).get(stage, 0.0) for stage in OTHER_STAGES),
            )
            for row in rows
        ]
        tick_ms, origin = int(rows[0]["tick_ms"]), f"{record['machine']}, {record['date']}, {record['command']}"
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise CapacityError(
            f"expected the JSON of a benchmark (./sca bench engine --paced), got {file}: {error!r}"
        ) from error
    return sorted(measured, key=lambda row: row.conversations), tick_ms, origin


@dataclass(frozen=True)
class TickTimes:
    """Distribution of the engine's time for a batch: interpolated between measured sizes, proportional beyond them."""

    sizes: tuple[int, ...]
    medians_s: tuple[float, ...]
    spreads: tuple[float, ...]  # standard deviations of the logarithm
    outside_s: float = 0.0  # constant time of a tick outside the engine

    @classmethod
    def of(cls, measured: Sequence[Measured], outside_s: float = 0.0) -> TickTimes:
        """Fit the distribution to rows in the order of their conversations."""
        return cls(
            tuple(row.conversations for row in measured),
            tuple(row.p50_ms / 1000 for row in measured),
            tuple(float(np.log(max(1.0, row.p99_ms / row.p50_ms)) / Z99) for row in measured),
            outside_s,
        )

    def draw(self, size: int, random: np.random.Generator) -> float:
        """Draw the seconds of one batch of `size` ticks."""
        median = float(np.interp(size, self.sizes, self.medians_s))
        if size > self.sizes[-1]:
            median *= size / self.sizes[-1]
        return median * float(np.exp(random.normal() * np.interp(size, self.sizes, self.spreads)))


def latencies(times: TickTimes, conversations: int, tick_s: float, seed: int = 0) -> np.ndarray:
    """Simulate the seconds from each tick's due time to its response, without the first tenth: [ticks]."""
    random = np.random.default_rng(seed)
    results = []
    for _ in range(PHASE_SETS):
        phases = random.uniform(0, tick_s, conversations)
        due_s = np.sort((phases[:, None] + tick_s * np.arange(SIMULATED_TICKS)).ravel())
        free_s, first = 0.0, 0
        done_s = np.empty_like(due_s)
        while first < len(due_s):
            begin_s = max(free_s, due_s[first] + QUEUE_DELAY_S)
            last = int(np.searchsorted(due_s, begin_s, side="right"))
            last = min(max(last, first + 1), first + conversations)  # at most one tick of each conversation
            free_s = begin_s + times.draw(last - first, random)
            done_s[first:last] = free_s
            first = last
        results.append((done_s - due_s)[len(due_s) // 10 :] + times.outside_s)
    return np.concatenate(results)


def max_conversations(times: TickTimes, tick_s: float, p99_s: float, slots: int) -> int:
    """Return the maximum of conversations whose 99th percentile is within `p99_s`, up to `slots`; may be 0."""

    def is_within(count: int) -> bool:
        return float(np.percentile(latencies(times, count, tick_s), 99)) <= p99_s

    below, above = 0, slots + 1
    while above - below > 1:
        middle = (below + above) // 2
        below, above = (middle, above) if is_within(middle) else (below, middle)
    return below


def refused_share(offered: float, slots: int) -> float:
    """Return the share of refused conversations by Erlang's formula B.

    `offered`: mean number of conversations at once if there were no limit.
    """
    share = 1.0
    for slot in range(1, slots + 1):
        share = offered * share / (slot + offered * share)
    return share


def max_offered(slots: int, refused: float) -> float:
    """Return the maximum load, as in `refused_share`, of which the share `refused` is refused."""
    below, above = 0.0, 2.0 * slots + 10
    for _ in range(60):
        middle = (below + above) / 2
        below, above = (middle, above) if refused_share(middle, slots) <= refused else (below, middle)
    return below
