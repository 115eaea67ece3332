"""`./sca bench bridge-load` and `churn`: the bridge on one core, without an engine."""

from __future__ import annotations

import argparse

from commands.benches import Bench, add_conversations, numbers
from commands.console import UserError, console
from config import Settings


def _add_load_arguments(parser: argparse.ArgumentParser) -> None:
    add_conversations(parser)
    parser.add_argument("--seconds", type=float, default=30, help="seconds measured at each number (default: 30)")
    parser.add_argument("--idle", type=int, default=0, help="additional WebSockets without a conversation (default: 0)")


def _add_churn_arguments(parser: argparse.ArgumentParser) -> None:
    add_conversations(parser)
    parser.add_argument("--minutes", type=float, default=30, help="duration in minutes (default: 30)")


def _run_load(arguments: argparse.Namespace, settings: Settings) -> None:
    from benchmarks.bridge_load import bench_bridge_load
    from benchmarks.report import show

    counts = numbers(arguments.conversations)
    try:
        rows = bench_bridge_load(settings, counts, arguments.seconds, arguments.idle)
    except (OSError, RuntimeError) as error:
        raise UserError(str(error)) from error
    show(rows, arguments.build.resolve() / "bench" / "bridge-load.json")


def _run_churn(arguments: argparse.Namespace, settings: Settings) -> None:
    from benchmarks.bridge_load import bench_churn, show_churn
    from training.judges.dialogue import write_json

    try:
        samples = bench_churn(settings, max(numbers(arguments.conversations)), arguments.minutes)
    except (OSError, RuntimeError) as error:
        raise UserError(str(error)) from error
    write_json(samples, arguments.build.resolve() / "bench" / "churn.json")
    console.print(show_churn(samples))


BENCHES = {
    "bridge-load": Bench("load of the bridge on one core, on each protocol", _add_load_arguments, _run_load),
    "churn": Bench("memory of the bridge while conversations start and end", _add_churn_arguments, _run_churn),
}
