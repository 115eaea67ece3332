"""Results of the quality benchmark as tables and as a page with a picture."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Sequence
from datetime import date
from pathlib import Path

import numpy as np
from rich.table import Table

from benchmarks.plot import draw_quality
from benchmarks.quality import Load, Recording, Turns
from benchmarks.quality_cases import INTERRUPTION, PAUSE, TURN
from benchmarks.report import command, machine
from benchmarks.sound_quality import Seam

TURNS = (
    "pauses kept", "turns taken", "response, p50", "slowest", "interruptions that met an answer",
    "answer stopped within, p50", "slowest", "response to the interruption, p50", "slowest",
)  # fmt: skip
SOUNDS = (
    "engine seconds a second", "late ticks", "answers", "silence in them", "longest gap", "clipped samples",
    "seams at ticks' borders", "seams in the middle of ticks (control)",
)  # fmt: skip
SOUND_TITLE = "Sound (a seam is the derivative's energy divided by the energy around it: 1 without seams)"
STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;margin:1rem 0}td,th{border:1px solid #999;padding:.3rem .6rem;text-align:left}"
    "img{max-width:100%}"
)


def show(loads: Sequence[Load]) -> list[Table]:
    """Return a table of turns and a table of sound."""
    tables = []
    for title, columns, cells in _contents(loads):
        table = Table(*columns, title=title, title_justify="left")
        for row in cells:
            table.add_row(*row)
        tables.append(table)
    return tables


def write_page(loads: Sequence[Load], recordings: Sequence[Recording], folder: Path) -> Path:
    """Write `index.html` and its picture; return the page's path. `recordings`: those of the first load."""
    draw_quality(loads, recordings, folder / "quality.png")
    measured = html.escape(f"{command()}; {machine()}; {date.today()}")
    sections = [f"<h1>Turn taking and sound</h1><p>{measured}</p>"]
    for title, columns, cells in _contents(loads):
        rows = [_row("th", columns), *(_row("td", row) for row in cells)]
        sections.append(f"<h2>{html.escape(title)}</h2><table>{''.join(rows)}</table>")
    sections.append('<h2>Response delays, and a conversation</h2><img src="quality.png" alt="Delays and a timeline">')
    page = folder / "index.html"
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Quality</title><style>{STYLE}</style>'
    page.write_text(head + "".join(sections), encoding="utf-8")
    return page


def _row(tag: str, cells: Iterable[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def _contents(loads: Sequence[Load]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Return title, head and rows of each table; a table has a column for each load."""
    clocks = [
        (f"{load.conversations} at once, {clock}", _turns(turns))
        for load in loads
        for clock, turns in (("model time", load.model), ("by arrival", load.arrival))
    ]
    sounds = [_sound(load) for load in loads]
    return [
        ("Turns", ["", *(head for head, _ in clocks)],
         [list(row) for row in zip(TURNS, *(cells for _, cells in clocks), strict=True)]),
        (SOUND_TITLE, ["", *(f"{load.conversations} at once" for load in loads)],
         [list(row) for row in zip(SOUNDS, *sounds, strict=True)]),
    ]  # fmt: skip


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


def _share(turns: Sequence[Turns], condition: Callable[[Turns], bool | None]) -> str:
    return f"{sum(bool(condition(each)) for each in turns)} of {len(turns)}" if turns else "–"


def _seconds(values: Iterable[float | None]) -> tuple[str, str]:
    """Return the median and the maximum."""
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
