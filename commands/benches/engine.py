"""`./sca bench engine`, `age` and `turn`: the engine in this process, without Triton."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from commands.benches import Bench, add_conversations, numbers
from commands.console import UserError, console
from config import Settings, SettingsError

if TYPE_CHECKING:
    from benchmarks.row import Row
    from engine.checkpoint import Checkpoint


def _add_architecture(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        dest="architecture",
        choices=("served", "full"),
        default="served",
        help="the checkpoint of the settings (default), or random weights of the 30B architecture",
    )


def _add_turn_arguments(parser: argparse.ArgumentParser) -> None:
    add_conversations(parser)
    _add_architecture(parser)
    parser.add_argument("--ticks", type=int, default=100, help="turns measured at each number (default: 100)")


def _add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    add_conversations(parser)
    _add_architecture(parser)
    parser.add_argument("--ticks", type=int, default=100, help="ticks measured at each number (default: 100)")
    parser.add_argument("--age-s", type=float, default=0, help="age of the conversations, in seconds (default: 0)")
    parser.add_argument("--sampled", action="store_true", help="the default sampling instead of greedy")
    parser.add_argument("--paced", action="store_true", help="a tick every tick_ms instead of one after the other")
    parser.add_argument("--baseline", choices=("transformers",), help="also the same ticks with transformers")
    parser.add_argument("--baseline-ticks", type=int, help="ticks of the baseline (default: as --ticks)")
    parser.add_argument("--profile", action="store_true", help="print the slowest operations at the last number")


def _run_age(arguments: argparse.Namespace, settings: Settings) -> None:
    from benchmarks.engine import bench_age

    _run(arguments, settings, lambda checkpoint: bench_age(checkpoint, settings))


def _run_turn(arguments: argparse.Namespace, settings: Settings) -> None:
    from benchmarks.turn import bench_turn

    counts = numbers(arguments.conversations)
    _run(arguments, settings, lambda checkpoint: bench_turn(checkpoint, settings, counts, arguments.ticks))


def _run_engine(arguments: argparse.Namespace, settings: Settings) -> None:
    from benchmarks.engine import bench_engine, bench_transformers, profile

    counts = numbers(arguments.conversations)

    def measure(checkpoint: Checkpoint) -> Iterable[Row]:
        how = (arguments.ticks, arguments.age_s, arguments.paced, arguments.sampled)
        yield from bench_engine(checkpoint, settings, counts, *how)
        if arguments.profile:
            print(profile(checkpoint, settings, counts[-1], arguments.age_s))
        if arguments.baseline:
            yield bench_transformers(checkpoint, settings, arguments.baseline_ticks or arguments.ticks)

    _run(arguments, settings, measure)


def _run(arguments: argparse.Namespace, settings: Settings, measure: Callable[[Checkpoint], Iterable[Row]]) -> None:
    """Measure, and write each row as soon as it is there: a later one may run out of memory or time."""
    from benchmarks.report import show, write
    from engine.errors import CheckpointError, MemoryRefusedError

    path = arguments.build.resolve() / "bench" / f"{arguments.what}.json"
    rows: list[Row] = []
    try:
        for row in measure(_checkpoint(arguments, settings)):
            rows.append(row)
            write(rows, path)
            console.print(
                f"{row.what}, {row.conversations} conversations: p50 {row.p50_ms:.1f} ms, p99 {row.p99_ms:.1f}"
            )
    except (CheckpointError, MemoryRefusedError, SettingsError) as error:
        raise UserError(str(error)) from error
    show(rows, path)


def _checkpoint(arguments: argparse.Namespace, settings: Settings) -> Checkpoint:
    from engine.checkpoint import load_checkpoint, resolve_device, resolve_dtype

    if arguments.architecture == "served":
        from export.repository import find_checkpoint

        return load_checkpoint(find_checkpoint(settings, arguments.build.resolve(), console.print), settings.qwen)
    from benchmarks.full_size import full_checkpoint

    device = resolve_device(settings.qwen.device_map)
    with console.status("random weights for 34.5 billion parameters"):
        return full_checkpoint(device, resolve_dtype(settings.qwen.torch_dtype, device))


BENCHES = {
    "engine": Bench("ticks of the dialect sca, one after the other", _add_engine_arguments, _run_engine),
    "age": Bench("one conversation of 5,000 ticks in the dialect sca", _add_architecture, _run_age),
    "turn": Bench("end of turn to first codes in the dialect turn", _add_turn_arguments, _run_turn),
}
