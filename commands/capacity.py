"""./sca capacity: the capacity of a replica and of several replicas, from measured ticks."""

from __future__ import annotations

import argparse
from pathlib import Path

from commands.benches import numbers
from commands.console import ROOT, UserError, console

H200 = ROOT / "benchmarks" / "h200.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "ticks",
        type=Path,
        nargs="?",
        default=H200,
        help="JSON that ./sca bench engine --paced wrote (default: the full size on one H200)",
    )
    parser.add_argument(
        "--served", type=Path, metavar="JSON", help="JSON that ./sca bench triton wrote, to compare the model with"
    )
    parser.add_argument("--slots", type=int, default=64, metavar="N", help="slots of a replica (default: 64)")
    parser.add_argument(
        "--p99-ms", type=float, default=320, metavar="MS", help="limit of a tick's 99th percentile (default: 320)"
    )
    parser.add_argument(
        "--minutes", type=float, default=4, help="mean duration of a conversation in minutes (default: 4)"
    )
    parser.add_argument("--replicas", default="1,10", metavar="N,N,...", help="numbers of replicas (default: 1,10)")


def run(arguments: argparse.Namespace) -> int:
    """Print the tables."""
    if min(arguments.slots, arguments.p99_ms, arguments.minutes) <= 0:
        raise UserError("--slots, --p99-ms and --minutes must be numbers above 0")
    counts = numbers(arguments.replicas, "--replicas")
    from benchmarks.capacity import CapacityError, TickTimes, max_conversations, read_measured
    from benchmarks.capacity_report import show_replicas, show_targets, show_validation

    try:
        measured, tick_ms, origin = read_measured(arguments.ticks)
        served, _, served_origin = read_measured(arguments.served) if arguments.served else ([], 0, "")
    except CapacityError as error:
        raise UserError(str(error)) from error
    outside_s = served[0].outside_ms / 1000 if served else 0.0
    times = TickTimes.of(measured, outside_s)
    console.print(f"ticks: {origin}")
    if served:
        console.print(f"compared with: {served_origin}; {1000 * outside_s:.1f} ms outside of the engine")
        console.print(show_validation(times, tick_ms, served))
    count = max_conversations(times, tick_ms / 1000, arguments.p99_ms / 1000, arguments.slots)
    if not count:
        raise UserError(
            f"one conversation's ticks exceed {arguments.p99_ms:g} ms at the 99th percentile: raise --p99-ms"
        )
    console.print(show_targets(times, tick_ms, arguments.slots))
    console.print(show_replicas(times, tick_ms, count, counts, arguments.minutes))
    return 0
