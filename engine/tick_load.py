"""How much of their time ticks take: whether they are in time, and whether one more conversation may begin."""

from __future__ import annotations

from collections import Counter, deque
from typing import NamedTuple

WINDOW_S = 10.0  # of ticks that the load is told from
MIN_TICKS = 20  # in it: fewer say nothing
QUANTILE = 0.95
PAUSES = 2  # ticks of the window that may be slower than that: pauses of the machine are no load
BUCKETS_S = (0.01, 0.02, 0.04, 0.08, 0.12, 0.16, 0.2, 0.24, 0.28, 0.32, 0.5, 1.0, 2.5)  # upper bounds


class _Tick(NamedTuple):
    at_s: float
    seconds: float
    rows: int


class TickLoad:
    """The latest ticks' durations, and a histogram of all."""

    def __init__(self, tick_s: float, share: float):
        """Ticks come every `tick_s`; they may take `share` of it before a conversation is refused."""
        self.tick_s, self._share = tick_s, share
        self._ticks: deque[_Tick] = deque()
        self.histogram: Counter[float] = Counter()  # ticks by the least bucket that holds them; infinity past the last
        self.total_s = 0.0
        self.count = 0
        self.late = 0  # took longer than `tick_s`

    def note(self, now_s: float, seconds: float, rows: int) -> None:
        """A tick of `rows` conversations took so many seconds and ended now."""
        self._ticks.append(_Tick(now_s, seconds, rows))
        self.histogram[next((bucket for bucket in BUCKETS_S if seconds <= bucket), float("inf"))] += 1
        self.total_s += seconds
        self.count += 1
        self.late += seconds > self.tick_s

    def refusal(self, now_s: float, open_conversations: int) -> str | None:
        """Why no further conversation may begin; None where there is time for one.

        A tick's duration is taken to grow in proportion to its conversations, which batching makes a safe guess.
        """
        while self._ticks and self._ticks[0].at_s < now_s - WINDOW_S:
            self._ticks.popleft()
        if len(self._ticks) < MIN_TICKS or not open_conversations:
            return None
        fullest = max(tick.rows for tick in self._ticks)
        durations = sorted(tick.seconds for tick in self._ticks if 2 * tick.rows > fullest)
        slow_s = durations[max(0, min(int(QUANTILE * len(durations)), len(durations) - 1 - PAUSES))]
        if slow_s * (open_conversations + 1) / open_conversations <= self._share * self.tick_s:
            return None
        slow_ms, tick_ms = slow_s * 1000, self.tick_s * 1000
        return (
            f"ticks of {open_conversations} conversations take {slow_ms:.0f} of their {tick_ms:.0f} ms "
            f"(95% of the last {WINDOW_S:g} s), too much for one more (engine.tick_share)"
        )
