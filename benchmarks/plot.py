"""Every picture of the benchmarks: tick times, a soak over time, response delays of recorded conversations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib

matplotlib.use("Agg")  # backend without a display
import numpy as np
from matplotlib import pyplot

from config.settings import INPUT_HZ, OUTPUT_HZ

if TYPE_CHECKING:
    from benchmarks.quality import Load, Recording
    from benchmarks.row import Row
    from benchmarks.soak import Soak


def draw_ticks(rows: Sequence[Row], file: Path) -> Path:
    """Draw tick times and deadline misses over the number of conversations; return the PNG's path."""
    figure, (times, misses) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for what in dict.fromkeys(row.what for row in rows):
        series = sorted((row for row in rows if row.what == what), key=lambda row: row.conversations)
        conversations = [row.conversations for row in series]
        (line,) = times.plot(conversations, [row.p50_ms for row in series], marker="o", label=f"{what} p50")
        times.plot(conversations, [row.p99_ms for row in series], ":", color=line.get_color(), label=f"{what} p99")
        floors = [row.floor_ms for row in series if row.floor_ms]
        if len(floors) == len(series):
            times.plot(conversations, floors, "--", color=line.get_color(), alpha=0.5, label=f"{what} floor")
        missed = [100 * row.deadline_misses / row.ticks for row in series]
        misses.plot(conversations, missed, marker="o", color=line.get_color(), label=what)
    times.axhline(rows[0].tick_ms, color="gray", linestyle="--", label="deadline: the next tick is due")
    times.set(xlabel="conversations", ylabel="ms a tick", ylim=(0, None), title="Tick time")
    misses.set(xlabel="conversations", ylabel="% of ticks", ylim=(-1, 101), title="Deadlines missed")
    counts = sorted({row.conversations for row in rows})
    for axes in (times, misses):
        axes.set_xscale("log", base=2)
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.legend()
    return _save(figure, file)


def draw_soak(run: Soak, file: Path) -> Path:
    """Draw memory, slots and conversations of a soak over time; return the PNG's path."""
    minutes = [sample.at_s / 60 for sample in run.samples]
    figure, (memory, slots, counts) = pyplot.subplots(3, 1, figsize=(9, 9), layout="constrained", sharex=True)
    for name in run.growth():
        memory.plot(minutes, [sample.memory.get(name, 0) / 1e6 for sample in run.samples], label=name)
    memory.set(ylabel="MB", ylim=(0, None), title="Memory of the server's processes")
    slots.plot(minutes, [sample.slots_taken for sample in run.samples], drawstyle="steps-post")
    slots.set(ylabel="slots", ylim=(0, None), title=f"Occupied slots, {run.sessions} clients at once")
    counts.plot(minutes, [sample.conversations for sample in run.samples], label="completed conversations")
    counts.plot(minutes, [sample.checked for sample in run.samples], label=f"of these, equal to {run.reference}")
    counts.plot(minutes, [sample.refused for sample in run.samples], ":", label="refused as full")
    counts.set(xlabel="minutes", ylabel="total", ylim=(0, None))
    memory.legend(loc="center right", fontsize="small")
    counts.legend(loc="upper left", fontsize="small")
    return _save(figure, file)


def draw_quality(loads: Sequence[Load], recordings: Sequence[Recording], file: Path) -> Path:
    """Draw cumulative response delays, and the first interrupted conversation over time; return the PNG's path."""
    shown = next((each for each in recordings if each.case.is_interruption), recordings[0])
    figure, (delays, user, answer) = pyplot.subplots(
        3, 1, figsize=(10, 8), layout="constrained", height_ratios=[2, 1, 1]
    )
    for load in loads:
        for clock, turns, line in (("model time", load.model, ":"), ("by arrival", load.arrival, "-")):
            known = sorted(each.response_s for each in turns if each.response_s is not None)
            if known:
                shares = 100 * np.arange(1, len(known) + 1) / len(known)
                delays.step(known, shares, line, where="post", label=f"{load.conversations} at once, {clock}")
    delays.set(xlabel="seconds after the user's last word", ylabel="% of answers begun", title="Response delay")
    if delays.lines:
        delays.legend()
    output = shown.output(by_arrival=True)
    user.plot(np.arange(len(shown.case.pcm)) / INPUT_HZ, shown.case.pcm / 32768, linewidth=0.4)
    answer.plot(np.arange(len(output)) / OUTPUT_HZ, output / 32768, linewidth=0.4, color="tab:orange")
    for axes, label in ((user, "user"), (answer, "answer")):
        axes.axvspan(shown.case.begin_s, shown.case.end_s, alpha=0.15)
        axes.set(ylabel=label, xlim=(0, shown.case.seconds), ylim=(-1, 1))
    answer.set(xlabel=f"seconds of {'/'.join(shown.case.file.parts[-3:-1])}")
    return _save(figure, file)


def _save(figure: Any, file: Path) -> Path:
    for axes in figure.axes:
        axes.grid(alpha=0.3)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=115)
    pyplot.close(figure)
    return file
