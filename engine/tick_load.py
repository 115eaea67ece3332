"""Load of the ticks: their durations, how many were late, and whether another conversation may start."""

from __future__ import annotations

from collections import Counter, deque
from typing import NamedTuple

WINDOW_S = 10.0  # sliding window over which the load is computed
MIN_TICKS = 20  # ticks in the window below which the load is unknown
QUANTILE = 0.95
PAUSES = 2  # ticks of the window that are always ignored, as pauses of the machine
BUCKETS_S = (0.01, 0.02, 0.04, 0.08, 0.12, 0.16, 0.2, 0.24, 0.28, 0.32, 0.5, 1.0, 2.5)  # upper bounds


class _Tick(NamedTuple):
    at_s: float
    seconds: float
    rows: int


class TickLoad:
    """Durations of recent ticks, and a histogram of all ticks."""

    def __init__(self, tick_s: float, share: float):
        """Allow ticks, due every `tick_s`, to take `share` of it before conversations are refused; 0 is no limit."""
        self.tick_s, self._share = tick_s, share
        self._ticks: deque[_Tick] = deque()
        self.histogram: Counter[float] = Counter()  # ticks by bucket (not cumulative); infinity past the last bucket
        self.total_s = 0.0
        self.count = 0
        self.late = 0  # number of ticks that took longer than `tick_s`

    def note(self, now_s: float, seconds: float, rows: int) -> None:
        """Record a tick of `rows` conversations that took `seconds` and ended at `now_s`."""
        self._ticks.append(_Tick(now_s, seconds, rows))
        self.histogram[next((bucket for bucket in BUCKETS_S if seconds <= bucket), float("inf"))] += 1
        self.total_s += seconds
        self.count += 1
        self.late += seconds > self.tick_s

    def refusal(self, now_s: float, open_conversations: int) -> str | None:
        """Return the reason to refuse another conversation, or None if there is time for one.

        The estimate assumes durations proportional to the number of conversations: with batching an upper bound.
        """
        while self._ticks and self._ticks[0].at_s < now_s - WINDOW_S:
            self._ticks.popleft()
        if not self._share or len(self._ticks) < MIN_TICKS or not open_conversations:
            return None
        fullest = max(tick.rows for tick in self._ticks)
        durations = sorted(tick.seconds for tick in self._ticks if 2 * tick.rows > fullest)
        slow_s = durations[max(0, min(int(QUANTILE * len(durations)), len(durations) - 1 - PAUSES))]
        if slow_s * (open_conversations + 1) / open_conversations <= self._share * self.tick_s:
            return None
        slow_ms, tick_ms = slow_s * 1000, self.tick_s * 1000
        return (
            f"ticks of {open_conversations} conversations take {slow_ms:.0f} of {tick_ms:.0f} ms "
            f"(95th percentile of the last {WINDOW_S:g} s), too much for another (engine.tick_share)"
        )
