"""A soak as a picture: memory, conversations and ticks over time."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no display
from matplotlib import pyplot

from benchmarks.soak import Soak


def draw(run: Soak, file: Path) -> Path:
    """Writes a PNG; returns its place."""
    minutes = [sample.at_s / 60 for sample in run.samples]
    figure, (memory, slots, counts) = pyplot.subplots(3, 1, figsize=(9, 9), layout="constrained", sharex=True)
    for name in run.growth():
        memory.plot(minutes, [sample.memory.get(name, 0) / 1e6 for sample in run.samples], label=name)
    memory.set(ylabel="MB", ylim=(0, None), title="Memory of the server's processes")
    slots.plot(minutes, [sample.slots_taken for sample in run.samples], drawstyle="steps-post")
    slots.set(ylabel="slots", ylim=(0, None), title=f"Slots taken, {run.sessions} guests at once")
    counts.plot(minutes, [sample.conversations for sample in run.samples], label="conversations that have ended")
    counts.plot(minutes, [sample.checked for sample in run.samples], label=f"of them equal to {run.reference}")
    counts.plot(minutes, [sample.refused for sample in run.samples], ":", label="refused as full")
    counts.set(xlabel="minutes", ylabel="so far", ylim=(0, None))
    memory.legend(loc="center right", fontsize="small")
    counts.legend(loc="upper left", fontsize="small")
    for axes in (memory, slots, counts):
        axes.grid(alpha=0.3)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
    return file
