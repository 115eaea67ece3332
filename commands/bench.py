"""./sca bench: how fast it is, in tables and JSON."""

from __future__ import annotations

import argparse
from pathlib import Path

from commands.console import UserError, add_build_argument, load_settings, quiet_libraries


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    add_build_argument(parser)
    parser.add_argument(
        "what", choices=("engine", "triton"), help="engine: in this process; triton: a running ./sca serve"
    )
    parser.add_argument(
        "--sessions", default="1,2,4,8", metavar="N,N,...", help="conversations at once (default: 1,2,4,8)"
    )
    parser.add_argument("--ticks", type=int, default=100, help="engine: ticks measured for each (default: 100)")
    parser.add_argument("--seconds", type=float, default=30, help="triton: seconds measured for each (default: 30)")
    parser.add_argument("--baseline", choices=("transformers",), help="engine: the same ticks through transformers too")


def run(arguments: argparse.Namespace) -> int:
    """Measures, prints, writes build/bench/WHAT.json."""
    settings = load_settings()
    quiet_libraries()
    from benchmarks.report import Row, show

    sessions = parse_sessions(arguments.sessions)
    build: Path = arguments.build
    rows: list[Row] = []
    if arguments.what == "engine":
        from benchmarks.engine import bench_engine, bench_transformers
        from engine.checkpoint import load_checkpoint
        from export.repository import find_checkpoint

        checkpoint = load_checkpoint(find_checkpoint(settings, build.resolve(), print), settings.qwen)
        rows = bench_engine(checkpoint, settings, sessions, arguments.ticks)
        if arguments.baseline:
            rows.append(bench_transformers(checkpoint, settings, arguments.ticks))
    else:
        from benchmarks.triton import bench_triton
        from frontend.triton import TickError

        if max(sessions) > settings.engine.slots:
            raise UserError(
                f"--sessions asks for {max(sessions)}, engine.slots is {settings.engine.slots}: "
                f"serve and measure with SCA_ENGINE_SLOTS={max(sessions)}"
            )
        try:
            rows = bench_triton(settings, sessions, arguments.seconds)
        except TickError as error:
            raise UserError(str(error)) from error
    show(rows, build / "bench" / f"{arguments.what}.json")
    return 0


def parse_sessions(text: str) -> list[int]:
    """`1,2,4` as numbers. Raises `UserError`."""
    try:
        sessions = [int(part) for part in text.split(",")]
    except ValueError:
        sessions = []
    if not sessions or min(sessions) < 1:
        raise UserError(f"--sessions is {text!r}, expected numbers above 0 such as 1,2,4")
    return sessions
