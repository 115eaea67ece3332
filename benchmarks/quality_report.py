"""Measured conversations as tables, a picture and a page."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Sequence
from datetime import date
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no display
import numpy as np
from matplotlib import pyplot
from rich.table import Table

from benchmarks.quality import Heard, Load, Turns
from benchmarks.quality_cases import INTERRUPTION, PAUSE, TURN
from benchmarks.report import command, machine
from benchmarks.sound_quality import Seam
from config.settings import INPUT_HZ, OUTPUT_HZ

Cells = list[list[str]]
TURNS = (
    "pauses kept", "turns taken", "response, p50", "slowest", "interruptions that met an answer",
    "it fell silent within, p50", "slowest", "response to the interruption, p50", "slowest",
)  # fmt: skip
SOUNDS = (
    "engine's ticks a second", "ticks late", "answers", "silent in them", "longest gap", "samples clipped",
    "seams at ticks' borders", "likewise in mid-tick",
)  # fmt: skip
STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;margin:1rem 0}td,th{border:1px solid #999;padding:.3rem .6rem;text-align:left}"
    "img{max-width:100%}"
)


def show(loads: Sequence[Load]) -> list[Table]:
    """Turns, and sound."""
    tables = []
    for title, columns, cells in _contents(loads):
        table = Table(*columns, title=title, title_justify="left")
        for row in cells:
            table.add_row(*row)
        tables.append(table)
    return tables


def write_page(loads: Sequence[Load], heard: Sequence[Heard], folder: Path) -> Path:
    """`index.html` and its picture; returns the page's place. `heard`: of the first of the loads."""
    folder.mkdir(parents=True, exist_ok=True)
    _draw(loads, heard, folder / "quality.png")
    parts = [f"<h1>How conversations take turns and sound</h1><p>{html.escape(_measured_by())}</p>"]
    for title, columns, cells in _contents(loads):
        rows = [_row("th", columns), *(_row("td", row) for row in cells)]
        parts.append(f"<h2>{html.escape(title)}</h2><table>{''.join(rows)}</table>")
    parts.append(
        '<h2>When answers begin, and a conversation</h2><img src="quality.png" alt="Response delays, timeline">'
    )
    page = folder / "index.html"
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Quality</title><style>{STYLE}</style>'
    page.write_text(head + "".join(parts), encoding="utf-8")
    return page


def _measured_by() -> str:
    return f"{command()}; {machine()}; {date.today()}"


def _row(tag: str, cells: Iterable[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def _contents(loads: Sequence[Load]) -> list[tuple[str, list[str], Cells]]:
    """Tables with a column a load: title, head and rows."""
    timed = [(load, time) for load in loads for time in ("model's time", "by arrival")]
    turns = [_turns(load.model if time == "model's time" else load.arrival) for load, time in timed]
    sounds = [_sound(load) for load in loads]
    heads = ["", *(f"{load.conversations} at once, {time}" for load, time in timed)]
    return [
        ("Turns", heads, [list(row) for row in zip(TURNS, *turns, strict=True)]),
        (
            "Sound (a seam is the energy of the derivative over that around it: 1 where there is none)",
            ["", *(f"{load.conversations} at once" for load in loads)],
            [list(row) for row in zip(SOUNDS, *sounds, strict=True)],
        ),
    ]


def _turns(turns: Sequence[Turns]) -> list[str]:
    def of(task: str) -> list[Turns]:
        return [each for each in turns if each.task == task]

    return [
        _share(of(PAUSE), lambda each: each.kept_pause),
        _share(of(TURN), lambda each: each.took_turn),
        *_seconds(each.response_s for each in of(TURN)),
        _share(of(INTERRUPTION), lambda each: each.overlapped),
        *_seconds(each.stop_s for each in of(INTERRUPTION)),
        *_seconds(each.response_s for each in of(INTERRUPTION)),
    ]


def _share(turns: Sequence[Turns], holds: Callable[[Turns], bool | None]) -> str:
    return f"{sum(bool(holds(each)) for each in turns)} of {len(turns)}" if turns else "–"


def _seconds(values: Iterable[float | None]) -> tuple[str, str]:
    """The median, and the greatest."""
    known = [value for value in values if value is not None]
    return (f"{np.median(known):.2f} s", f"{max(known):.2f} s") if known else ("–", "–")


def _sound(load: Load) -> list[str]:
    sound = load.sound
    return [
        f"{load.real_time_factor:.2f} s",
        f"{load.late_share:.1%}",
        f"{sound.answers_s:.0f} s",
        f"{sound.silent_share:.1%}",
        f"{sound.longest_gap_s:.2f} s",
        f"{sound.clipped_share:.3%}",
        _seam(sound.borders),
        _seam(sound.middles),
    ]


def _seam(seam: Seam) -> str:
    return f"{seam.ratio:.2f} ± {seam.error:.2f} at {seam.places}" if seam.places > 1 else "–"


def _draw(loads: Sequence[Load], heard: Sequence[Heard], file: Path) -> None:
    """Response delays as steps of their share, and the first interrupted conversation, or else the first, in time."""
    shown = next((each for each in heard if each.case.task == INTERRUPTION), heard[0])
    figure, (delays, user, answer) = pyplot.subplots(
        3, 1, figsize=(10, 8), layout="constrained", height_ratios=[2, 1, 1]
    )
    for load in loads:
        for time, turns, line in (("the model's time", load.model, ":"), ("by arrival", load.arrival, "-")):
            known = sorted(each.response_s for each in turns if each.response_s is not None)
            if known:
                shares = 100 * np.arange(1, len(known) + 1) / len(known)
                delays.step(known, shares, line, where="post", label=f"{load.conversations} at once, {time}")
    delays.set(xlabel="seconds after the user's last word", ylabel="% of answers begun", title="Response delay")
    if delays.lines:
        delays.legend()
    delays.grid(alpha=0.3)
    sound = shown.sound(by_arrival=True)
    user.plot(np.arange(len(shown.case.pcm)) / INPUT_HZ, shown.case.pcm / 32768, linewidth=0.4)
    answer.plot(np.arange(len(sound)) / OUTPUT_HZ, sound / 32768, linewidth=0.4, color="tab:orange")
    for axes, who in ((user, "the user"), (answer, "the answer")):
        axes.axvspan(shown.case.begin_s, shown.case.end_s, alpha=0.15)
        axes.set(ylabel=who, xlim=(0, shown.case.seconds), ylim=(-1, 1))
    answer.set(xlabel=f"seconds of {'/'.join(shown.case.file.parts[-3:-1])}")
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
