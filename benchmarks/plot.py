"""Rows as a picture: how long a tick takes, and how many miss their deadline, over the conversations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib

matplotlib.use("Agg")  # no display
from matplotlib import pyplot

if TYPE_CHECKING:
    from benchmarks.report import Row


def draw(rows: Sequence[Row], file: Path) -> Path:
    """Writes a PNG; returns its place."""
    figure, (times, misses) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for what in dict.fromkeys(row.what for row in rows):
        mine = sorted((row for row in rows if row.what == what), key=lambda row: row.conversations)
        conversations = [row.conversations for row in mine]
        (line,) = times.plot(conversations, [row.p50_ms for row in mine], marker="o", label=f"{what} p50")
        times.plot(conversations, [row.p99_ms for row in mine], ":", color=line.get_color(), label=f"{what} p99")
        floors = [row.floor_ms for row in mine if row.floor_ms]
        if len(floors) == len(mine):
            times.plot(conversations, floors, "--", color=line.get_color(), alpha=0.5, label=f"{what} floor")
        missed = [100 * row.deadline_misses / row.ticks for row in mine]
        misses.plot(conversations, missed, marker="o", color=line.get_color(), label=what)
    times.axhline(rows[0].tick_ms, color="gray", linestyle="--", label="the next tick is due")
    times.set(xlabel="conversations", ylabel="ms a tick", ylim=(0, None), title="Tick time")
    misses.set(xlabel="conversations", ylabel="% of ticks", ylim=(-1, 101), title="Deadlines missed")
    counts = sorted({row.conversations for row in rows})
    for axes in (times, misses):
        axes.set_xscale("log", base=2)
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(file, dpi=120)
    pyplot.close(figure)
    return file
