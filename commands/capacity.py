"""./sca capacity: the capacity of a replica and of a cluster, from measured ticks."""

from __future__ import annotations

import argparse
from pathlib import Path

from commands.bench import parse_conversations
from commands.console import ROOT, UserError, add_build_argument, console

H200 = ROOT / "benchmarks" / "h200.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_build_argument(parser)
    parser.add_argument(
        "ticks",
        type=Path,
        nargs="?",
        default=H200,
        help="output of ./sca bench engine --paced (default: the full size on one H200)",
    )
    parser.add_argument(
        "--served", type=Path, metavar="JSON", help="output of ./sca bench triton, to compare the model to"
    )
    parser.add_argument("--slots", type=int, default=64, metavar="N", help="slots of a replica (default: 64)")
    parser.add_argument("--p99-ms", type=float, default=320, metavar="MS", help="limit of a tick (default: 320)")
    parser.add_argument("--minutes", type=float, default=4, help="mean duration of a conversation (default: 4)")
    parser.add_argument("--replicas", default="1,10,100", metavar="N,N,...", help="cluster sizes (default: 1,10,100)")


def run(arguments: argparse.Namespace) -> int:
    """Print tables, and write build/bench/capacity.png."""
    if min(arguments.slots, arguments.p99_ms, arguments.minutes) <= 0:
        raise UserError("--slots, --p99-ms and --minutes must be above 0")
    counts = parse_conversations(arguments.replicas, "--replicas")
    from benchmarks.capacity import CapacityError, TickTimes, read_measured
    from benchmarks.capacity_report import Replica, check, clusters, draw, show, targets

    try:
        measured, tick_ms, by = read_measured(arguments.ticks)
        served, _, served_by = read_measured(arguments.served) if arguments.served else ([], 0, "")
    except CapacityError as error:
        raise UserError(str(error)) from error
    outside_s = served[0].outside_ms / 1000 if served else 0.0
    times = TickTimes.of(measured, outside_s)
    replica = Replica(times, tick_ms, arguments.slots, arguments.p99_ms)
    console.print(f"ticks: {by}")
    if served:
        console.print(
            f"held against: {served_by}; {1000 * outside_s:.1f} ms outside of the engine", check(replica, served)
        )
    if not replica.holds:
        raise UserError(f"not even one conversation's ticks stay within {arguments.p99_ms:g} ms in 99 of 100")
    with console.status("days"):
        found = clusters(replica, counts, arguments.minutes)
    console.print(targets(replica), show(found, replica.holds))
    console.print(f"picture: {draw(replica, found, served, arguments.build.resolve() / 'bench' / 'capacity.png')}")
    return 0
