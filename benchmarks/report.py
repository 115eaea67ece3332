"""Rows of a benchmark as tables in the terminal, JSON and a picture."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.plot import draw_ticks
from benchmarks.row import Row
from engine.memory import size

BASELINE = "transformers"
FILE_WIDTH = 160  # columns of tables that are written to a file


def machine() -> str:
    """Return the name of the GPU, or of the CPU with its number of cores."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return f"{names[0].split(': ')[1] if names else platform.machine()}, {os.cpu_count()} cores, no GPU"


def command() -> str:
    """Return the command line of this process."""
    if "bench" in sys.argv:
        return "./sca bench " + " ".join(sys.argv[sys.argv.index("bench") + 1 :])
    return f"python -m benchmarks.{Path(sys.argv[0]).stem} " + " ".join(sys.argv[1:])


def show(rows: Sequence[Row], file: Path) -> None:
    """Print the tables, write `file` as JSON and a picture with the same name."""
    console = Console(width=None if sys.stdout.isatty() else FILE_WIDTH)
    console.print(f"{command()}\n{machine()}, {date.today()}\n", highlight=False)
    console.print(_tick_table(rows))
    if any(row.stages_ms for row in rows):
        console.print(_stage_table([row for row in rows if row.stages_ms]))
    write(rows, file)
    console.print(f"all figures: {file}", highlight=False)
    console.print(f"picture: {draw_ticks(rows, file.with_suffix('.png'))}", highlight=False)


def _tick_table(rows: Sequence[Row]) -> Table:
    baselines = [row.p50_ms for row in rows if row.what == BASELINE]
    has_floor = any(row.floor_ms for row in rows)
    columns = ["what", "conversations", "tick p50", "p95", "p99", "missed", "RTF", "audio s/s", "memory"]
    columns += ["a session / transformers'"] * len(baselines) + ["floor"] * has_floor
    table = Table()
    for column in columns:
        table.add_column(column, justify="left" if column == "what" else "right")
    for row in rows:
        table.add_row(
            row.what,
            str(row.conversations),
            f"{row.p50_ms:.1f} ms",
            f"{row.p95_ms:.1f}",
            f"{row.p99_ms:.1f}",
            f"{row.deadline_misses}/{row.ticks}",
            f"{row.real_time_factor:.2f}",
            f"{row.audio_s_per_s:.1f}",
            size(row.memory_bytes) if row.memory_bytes else "–",
            *[f"{row.p50_ms / row.conversations / baseline:.2f}" for baseline in baselines],
            *[f"{row.floor_ms:.1f}" if row.floor_ms else "–"] * has_floor,
        )
    return table


def _stage_table(rows: Sequence[Row]) -> Table:
    table = Table(title="stages of a tick, mean ms", title_justify="left")
    names = list(dict.fromkeys(name for row in rows for name in row.stages_ms))
    for column in ("what", "conversations", *names):
        table.add_column(column, justify="left" if column == "what" else "right")
    for row in rows:
        table.add_row(row.what, str(row.conversations), *(f"{row.stages_ms.get(name, 0):.1f}" for name in names))
    return table


def write(rows: Sequence[Row], file: Path) -> None:
    """Write the rows as JSON, with the command, the machine and the date of the measurement."""
    figures = [
        {**asdict(row), "real_time_factor": row.real_time_factor, "audio_s_per_s": row.audio_s_per_s} for row in rows
    ]
    record = {"command": command(), "machine": machine(), "date": str(date.today()), "rows": figures}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(record, indent=2), encoding="utf-8")
