"""A row of a benchmark: statistics of the tick times that were measured with one number of conversations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Row:
    """Tick times with `conversations` conversations at once."""

    what: str
    conversations: int
    ticks: int
    mean_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    deadline_misses: int  # responses later than the next tick was due
    stages_ms: Mapping[str, float] = field(default_factory=dict)  # mean of each stage, if measured
    tick_ms: int = 320
    paced: bool = False  # ticks sent in real time: a tick's time is then a delay and gives no throughput
    memory_bytes: int | None = None  # memory of this process in `engine`, the engine's memory plan behind a server
    floor_ms: float | None = None  # time to move the tick's bytes at the measured bandwidth

    @classmethod
    def of(
        cls,
        what: str,
        conversations: int,
        tick_ms: int,
        latencies_s: Sequence[float],
        stages_ms: Mapping[str, float] = {},
        paced: bool = False,
        **fields: Any,
    ) -> Row:
        """Compute the statistics of latencies in seconds; `fields` are further fields of the row."""
        latencies_ms = np.asarray(latencies_s) * 1000
        p50, p95, p99 = np.percentile(latencies_ms, [50, 95, 99])
        return cls(
            what=what,
            conversations=conversations,
            ticks=len(latencies_ms),
            mean_ms=float(latencies_ms.mean()),
            p50_ms=float(p50),
            p95_ms=float(p95),
            p99_ms=float(p99),
            deadline_misses=int((latencies_ms > tick_ms).sum()),
            stages_ms=stages_ms,
            tick_ms=tick_ms,
            paced=paced,
            **fields,
        )

    @property
    def real_time_factor(self) -> float:
        """Mean tick time as a share of the tick's length; above 1 the server falls behind."""
        return self.mean_ms / self.tick_ms

    @property
    def audio_s_per_s(self) -> float:
        """Seconds of audio of all conversations in a second; of paced rows at most the rate that was sent."""
        rate = 1 / self.real_time_factor
        return self.conversations * (min(1.0, rate) if self.paced else rate)
