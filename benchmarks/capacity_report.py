"""What a replica and a cluster hold, as tables and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no display
import numpy as np
from matplotlib import pyplot
from rich.table import Table

from benchmarks.capacity import Measured, TickTimes, latencies, max_conversations
from benchmarks.day import Day, max_offered, refused_share, simulate

REFUSED = 0.001  # share of the busiest hour's conversations
TARGETS_MS = (100, 150, 200, 250, 320)  # for the 99th percentile of a tick


@dataclass(frozen=True)
class Replica:
    """A model of one, and what is asked of it."""

    times: TickTimes
    tick_ms: int
    slots: int
    p99_ms: float  # that ticks may take

    @property
    def holds(self) -> int:
        """Conversations within that, up to its slots."""
        return max_conversations(self.times, self.tick_ms / 1000, self.p99_ms / 1000, self.slots)

    def percentiles_ms(self, at_once: Mapping[int, float]) -> tuple[float, float]:
        """p50 and p99 of ticks, by the share of time that so many are held."""
        drawn = {count: 1000 * latencies(self.times, count, self.tick_ms / 1000) for count in at_once}
        values = np.concatenate(list(drawn.values()))
        weights = np.concatenate([np.full(len(each), at_once[count] / len(each)) for count, each in drawn.items()])
        order = np.argsort(values)
        shares = np.cumsum(weights[order])
        p50, p99 = (float(values[order][np.searchsorted(shares, share * shares[-1])]) for share in (0.5, 0.99))
        return p50, p99


@dataclass(frozen=True)
class Cluster:
    """A day of one."""

    replicas: int
    offered: float  # conversations at once in the busiest hour
    day: Day
    p50_ms: float
    p99_ms: float


def check(replica: Replica, served: Sequence[Measured]) -> Table:
    """The model beside a load test."""
    table = Table("conversations", "p50 by the model", "measured", "p99 by the model", "measured")
    for row in served:
        p50, p99 = replica.percentiles_ms({row.conversations: 1.0})
        table.add_row(
            str(row.conversations), f"{p50:.0f} ms", f"{row.p50_ms:.0f} ms", f"{p99:.0f} ms", f"{row.p99_ms:.0f} ms"
        )
    return table


def targets(replica: Replica) -> Table:
    """What a bound on the 99th percentile costs."""
    table = Table("p99 of a tick within", "conversations of a replica", "replicas for 1,000 at once")
    for target_ms in TARGETS_MS:
        most = max_conversations(replica.times, replica.tick_ms / 1000, target_ms / 1000, replica.slots)
        table.add_row(f"{target_ms} ms", str(most), str(-(-1000 // most)) if most else "–")
    return table


def clusters(replica: Replica, counts: Sequence[int], minutes: float) -> list[Cluster]:
    """A day of each, its busiest hour as full as REFUSED allows."""
    found, places = [], replica.holds
    for count in counts:
        offered = max_offered(count * places, REFUSED)
        day = simulate(offered, minutes, count, places)
        found.append(Cluster(count, offered, day, *replica.percentiles_ms(day.at_once)))
    return found


def show(found: Sequence[Cluster], places: int) -> Table:
    """A column a cluster."""
    columns = [_told(each, each.replicas * places) for each in found]
    table = Table("", *(f"{each.replicas} replicas" for each in found))
    for name in columns[0]:
        table.add_row(name, *(column[name] for column in columns))
    return table


def _told(cluster: Cluster, places: int) -> dict[str, str]:
    day = cluster.day
    taken = float(np.mean([at_once for at_once, _ in day.hours]))
    return {
        "places": f"{places:,}",
        "offered at once in the busiest hour": f"{cluster.offered:,.0f}",
        "refused in that hour, by Erlang's formula": f"{refused_share(cluster.offered, places):.2%}",
        "conversations of the simulated day": f"{day.arrived:,}",
        "refused": f"{day.refused:,}",
        "most at once": f"{day.busiest:,}",
        "places taken, mean of the day": f"{taken / places:.0%}",
        "tick, p50": f"{cluster.p50_ms:.0f} ms",
        "tick, p99": f"{cluster.p99_ms:.0f} ms",
    }


def draw(replica: Replica, found: Sequence[Cluster], served: Sequence[Measured], file: Path) -> Path:
    """Tick times over conversations, and the days; returns the PNG's place."""
    figure, (ticks, days) = pyplot.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    highest = max(2, round(1.25 * replica.holds))
    counts = np.unique(np.linspace(1, highest, 24).round().astype(int)).tolist()
    pairs = [replica.percentiles_ms({count: 1.0}) for count in counts]
    for which, (name, line) in enumerate((("p50", "-"), ("p99", ":"))):
        ticks.plot(counts, [pair[which] for pair in pairs], line, color="tab:blue", label=f"{name} by the model")
    if served:
        measured = [row for row in served if row.conversations <= highest]
        ticks.plot(*_points(measured, "p50_ms"), "o", color="tab:orange", label="p50 measured")
        ticks.plot(*_points(measured, "p99_ms"), "^", color="tab:orange", label="p99 measured")
    ticks.axhline(replica.p99_ms, color="gray", linestyle="--", label=f"{replica.p99_ms:g} ms")
    ticks.set(xlabel="conversations of a replica", ylabel="ms from when a tick is due to its answer", ylim=(0, None))
    for each in found:
        shares = [100 * at_once / (each.replicas * replica.holds) for at_once, _ in each.day.hours]
        days.step(range(24), shares, where="mid", label=f"{each.replicas} replicas: {each.day.arrived:,} a day")
    days.set(xlabel="hour of the day", ylabel="% of places taken", ylim=(0, 100))
    for axes in (ticks, days):
        axes.legend(fontsize="small")
        axes.grid(alpha=0.3)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
    return file


def _points(rows: Sequence[Measured], name: str) -> tuple[list[int], list[float]]:
    return [row.conversations for row in rows], [getattr(row, name) for row in rows]
