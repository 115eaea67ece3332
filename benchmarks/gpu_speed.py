"""Speed on a CUDA machine: ticks and turns of the full-size architecture, all with one set of random weights.

    python -m benchmarks.gpu_speed FOLDER

Prints each table when it is complete, and writes figures, pictures and profiles to the folder. If a benchmark fails,
the others still run; the end names the failed ones, with status 1.
"""

from __future__ import annotations

import argparse
import gc
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from benchmarks.engine import bench_engine, bench_transformers, profile
from benchmarks.full_size import full_checkpoint
from benchmarks.report import show
from benchmarks.row import Row
from benchmarks.turn import bench_turn
from config import Settings

AGE_S = 100  # age of every conversation: the caches are nearly full
TICK_CONVERSATIONS = (1, 2, 4, 8, 16, 32, 64, 128)
TURN_CONVERSATIONS = (1, 8, 32, 64)


def main() -> int:
    """Run every benchmark; return 0 if none failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    settings = Settings.load()
    eager = settings.with_values(engine={"cuda_graphs": False})
    checkpoint = full_checkpoint("cuda", torch.bfloat16)
    benchmarks: dict[str, Callable[[], Iterable[Row]]] = {
        "engine": lambda: bench_engine(checkpoint, settings, TICK_CONVERSATIONS, 20, AGE_S),
        "sampled": lambda: bench_engine(checkpoint, settings, (1, 32, 64), 10, AGE_S, sampled=True),
        "turn": lambda: bench_turn(checkpoint, settings, TURN_CONVERSATIONS, 24),
        "eager": lambda: bench_engine(checkpoint, eager, (1, 64), 5, AGE_S),
        "transformers": lambda: [bench_transformers(checkpoint, settings, 3)],
    }
    failed = []
    for name, measure in benchmarks.items():
        rows: list[Row] = []
        try:
            for row in measure():
                rows.append(row)
                print(f"{row.what}, {row.conversations}: p50 {row.p50_ms:.1f} ms", flush=True)
        except Exception:
            traceback.print_exc()
            failed.append(name)
        if rows:
            show(rows, folder / f"{name}.json")
        gc.collect()  # an engine's CUDA graphs keep their memory pool until they are deleted
        torch.cuda.empty_cache()
    for count in (1, 64):
        try:
            table = profile(checkpoint, settings, count, AGE_S)
            (folder / f"profile_{count}.txt").write_text(table, encoding="utf-8")
        except Exception:
            traceback.print_exc()
            failed.append(f"profile of {count}")
    print(f"failed: {', '.join(failed)}" if failed else "all benchmarks ran")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
