"""A day of conversations at a cluster: they come at random, more at noon than at night, refused when it is full."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np

HOURS = (  # share of the busiest hour
    0.25, 0.18, 0.14, 0.12, 0.12, 0.16, 0.28, 0.45, 0.65, 0.85, 0.95, 1.0,
    0.98, 0.95, 0.92, 0.9, 0.92, 0.95, 0.98, 0.92, 0.8, 0.65, 0.5, 0.35,
)  # fmt: skip
HOUR_S = 3600.0


@dataclass(frozen=True)
class Day:
    """What happened."""

    arrived: int
    refused: int
    busiest: int  # conversations at once, of the whole cluster
    hours: list[tuple[float, float]]  # of each, mean conversations at once and the share refused
    at_once: dict[int, float]  # share of the conversations' time spent on a replica that holds so many


def refused_share(offered: float, places: int) -> float:
    """Erlang's formula B: the share refused where `offered` conversations would be held on average without a limit."""
    share = 1.0
    for place in range(1, places + 1):
        share = offered * share / (place + offered * share)
    return share


def max_offered(places: int, refused: float) -> float:
    """Conversations at once that may be offered to so many places for a share refused."""
    below, above = 0.0, 2.0 * places + 10
    for _ in range(60):
        middle = (below + above) / 2
        below, above = (middle, above) if refused_share(middle, places) <= refused else (below, middle)
    return below


def simulate(offered: float, minutes: float, replicas: int, places: int, seed: int = 0) -> Day:
    """A day whose busiest hour offers `offered` conversations at once of `minutes` on average, exponentially spread.

    A new conversation goes to the replica that holds the fewest; `places` are a replica's.
    """
    chance = np.random.default_rng(seed)
    lasts_s = 60 * minutes
    held = [0] * replicas
    emptiest = [(0, replica) for replica in range(replicas)]  # a heap, whose entries may be out of date
    ending: list[tuple[float, int]] = []
    arrived = refused = busiest = 0
    hours: list[tuple[float, float]] = []
    at_once: dict[int, float] = {}
    for hour, share in enumerate(HOURS):
        count = chance.poisson(offered * share * HOUR_S / lasts_s)
        begins_s = np.sort(chance.uniform(hour * HOUR_S, (hour + 1) * HOUR_S, count))
        durations_s = chance.exponential(lasts_s, count)
        refused_now, spent_s = 0, 0.0
        for begin_s, duration_s in zip(begins_s.tolist(), durations_s.tolist(), strict=True):
            while ending and ending[0][0] <= begin_s:
                _, replica = heapq.heappop(ending)
                held[replica] -= 1
                heapq.heappush(emptiest, (held[replica], replica))
            while emptiest[0][0] != held[emptiest[0][1]]:
                heapq.heappop(emptiest)
            fewest, replica = emptiest[0]
            if fewest >= places:
                refused_now += 1
                continue
            held[replica] += 1
            heapq.heapreplace(emptiest, (held[replica], replica))
            heapq.heappush(ending, (begin_s + duration_s, replica))
            spent_s += duration_s
            busiest = max(busiest, len(ending))
            at_once[held[replica]] = at_once.get(held[replica], 0.0) + duration_s
        arrived, refused = arrived + count, refused + refused_now
        hours.append((spent_s / HOUR_S, refused_now / count if count else 0.0))
    total_s = sum(at_once.values())
    return Day(arrived, refused, busiest, hours, {n: spent_s / total_s for n, spent_s in sorted(at_once.items())})
