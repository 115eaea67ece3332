"""Measured ticks -> a table for people and JSON for programs."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.plot import draw
from engine.memory import size

BASELINE = "transformers"
WIDTH = 160  # of tables that go into a file


@dataclass(frozen=True)
class Row:
    """Ticks of so many conversations at once."""

    what: str
    conversations: int
    ticks: int
    mean_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    deadline_misses: int  # answers later than the next tick was due
    stages_ms: Mapping[str, float] = field(default_factory=dict)  # means, where they were measured
    tick_ms: int = 320
    paced: bool = False  # in real time; a tick's time is then a delay, and tells of no throughput
    memory_bytes: int | None = None  # of the process in `engine`, of the engine's plan behind a server
    floor_ms: float | None = None  # what moving the tick's bytes takes at the measured bandwidth

    @classmethod
    def of(
        cls,
        what: str,
        conversations: int,
        tick_ms: int,
        latencies_s: Sequence[float],
        stages_ms: Mapping[str, float] = {},
        paced: bool = False,
        **more: Any,
    ) -> Row:
        """From every measured latency, in seconds; `more` are fields as they are."""
        latencies_ms = np.asarray(latencies_s) * 1000
        p50, p95, p99 = np.percentile(latencies_ms, [50, 95, 99])
        return cls(
            what=what,
            conversations=conversations,
            ticks=len(latencies_ms),
            mean_ms=float(latencies_ms.mean()),
            p50_ms=float(p50),
            p95_ms=float(p95),
            p99_ms=float(p99),
            deadline_misses=int((latencies_ms > tick_ms).sum()),
            stages_ms=stages_ms,
            tick_ms=tick_ms,
            paced=paced,
            **more,
        )

    @property
    def real_time_factor(self) -> float:
        """Share of a tick's length that a tick takes, in the mean; above 1 it cannot keep up."""
        return self.mean_ms / self.tick_ms

    @property
    def audio_s_per_s(self) -> float:
        """Seconds of sound of all conversations that a second gives: as fast as it goes or, paced, as asked for."""
        rate = 1 / self.real_time_factor
        return self.conversations * (min(1.0, rate) if self.paced else rate)


def machine() -> str:
    """What the figures were measured on."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return f"{names[0].split(': ')[1] if names else platform.machine()}, {os.cpu_count()} cores, no GPU"


def show(rows: Sequence[Row], file: Path) -> None:
    """Prints the table, writes `file` as JSON and its picture beside it."""
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    console.print(f"{command()}\n{machine()}, {date.today()}\n", highlight=False)
    ticks = Table()
    columns = ["what", "conversations", "tick p50", "p95", "p99", "missed", "RTF", "audio s/s", "memory"]
    compared = [row.p50_ms for row in rows if row.what == BASELINE]
    floored = any(row.floor_ms for row in rows)
    columns += ["a session / transformers'"] * len(compared) + ["floor"] * floored
    for column in columns:
        ticks.add_column(column, justify="left" if column == "what" else "right")
    for row in rows:
        ticks.add_row(
            row.what,
            str(row.conversations),
            f"{row.p50_ms:.1f} ms",
            f"{row.p95_ms:.1f}",
            f"{row.p99_ms:.1f}",
            f"{row.deadline_misses}/{row.ticks}",
            f"{row.real_time_factor:.2f}",
            f"{row.audio_s_per_s:.1f}",
            size(row.memory_bytes) if row.memory_bytes else "–",
            *[f"{row.p50_ms / row.conversations / base:.2f}" for base in compared],
            *[f"{row.floor_ms:.1f}" if row.floor_ms else "–"] * floored,
        )
    console.print(ticks)
    staged = [row for row in rows if row.stages_ms]
    if staged:
        stages = Table(title="where a tick's time goes, mean ms", title_justify="left")
        names = list(dict.fromkeys(name for row in staged for name in row.stages_ms))
        for column in ("what", "conversations", *names):
            stages.add_column(column, justify="left" if column == "what" else "right")
        for row in staged:
            stages.add_row(row.what, str(row.conversations), *(f"{row.stages_ms.get(name, 0):.1f}" for name in names))
        console.print(stages)
    console.print(f"all figures: {file}", highlight=False)
    write(rows, file)
    picture = draw(rows, file.with_suffix(".png"))
    console.print(f"and their picture: {picture}", highlight=False)


def write(rows: Sequence[Row], file: Path) -> None:
    """The rows as JSON, with what they were measured by, on and when."""
    figures = [
        {**asdict(row), "real_time_factor": row.real_time_factor, "audio_s_per_s": row.audio_s_per_s} for row in rows
    ]
    record = {"command": command(), "machine": machine(), "date": str(date.today()), "rows": figures}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(record, indent=2), encoding="utf-8")


def command() -> str:
    """What this process was called with."""
    if "bench" in sys.argv:
        return "./sca bench " + " ".join(sys.argv[sys.argv.index("bench") + 1 :])
    return f"python -m benchmarks.{Path(sys.argv[0]).stem} " + " ".join(sys.argv[1:])
