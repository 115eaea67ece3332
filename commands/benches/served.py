"""`./sca bench triton`, `bridge`, `turn-bridge`, `perf-analyzer` and `move`: a running `./sca serve`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from commands.benches import Bench, add_conversations, numbers
from commands.console import UserError, console
from config import Settings

if TYPE_CHECKING:
    from benchmarks.row import Row


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_conversations(parser)
    parser.add_argument("--seconds", type=float, default=30, help="seconds measured at each number (default: 30)")


def _add_turn_arguments(parser: argparse.ArgumentParser) -> None:
    _add_arguments(parser)
    parser.add_argument("--wav", type=Path, help="speech of the conversations (default: noise)")
    parser.add_argument("--beside", type=int, metavar="PORT", help="also measure the bridge at this port, in turns")


def _add_perf_analyzer_arguments(parser: argparse.ArgumentParser) -> None:
    _add_arguments(parser)
    parser.add_argument("--wav", type=Path, required=True, help="speech of the conversations, 16 kHz mono")


def _add_move_arguments(_: argparse.ArgumentParser) -> None:
    """Add nothing: the benchmark has no arguments."""


def _run_triton(arguments: argparse.Namespace, settings: Settings) -> None:
    from benchmarks.triton import bench_triton

    _run(arguments, settings, lambda counts: bench_triton(settings, counts, arguments.seconds))


def _run_bridge(arguments: argparse.Namespace, settings: Settings) -> None:
    from benchmarks.bridge import bench_bridge

    _run(arguments, settings, lambda counts: bench_bridge(settings, counts, arguments.seconds))


def _run_turn_bridge(arguments: argparse.Namespace, settings: Settings) -> None:
    from benchmarks.turn_bridge import bench_turn_bridge
    from client.sound import read_sound, to_pcm16

    def measure(counts: list[int]) -> Sequence[Row]:
        speech = to_pcm16(read_sound(arguments.wav)) if arguments.wav else None
        return bench_turn_bridge(settings, counts, arguments.seconds, speech, arguments.beside)

    _run(arguments, settings, measure)


def _run_perf_analyzer(arguments: argparse.Namespace, settings: Settings) -> None:
    from benchmarks.perf_analyzer import bench_perf_analyzer

    folder = arguments.build.resolve() / "perf_analyzer"
    _run(
        arguments,
        settings,
        lambda counts: bench_perf_analyzer(settings, counts, arguments.seconds, arguments.wav, folder),
    )


def _run_move(arguments: argparse.Namespace, settings: Settings) -> None:
    from benchmarks.move import bench_move, show
    from frontend.tick import TickError
    from training.judges.dialogue import write_json

    try:
        moves = bench_move(settings)
    except TickError as error:
        raise UserError(f"{error} (./sca serve first)") from error
    write_json(moves, arguments.build.resolve() / "bench" / "move.json")
    console.print(show(moves))


def _run(arguments: argparse.Namespace, settings: Settings, measure: Callable[[list[int]], Sequence[Row]]) -> None:
    """Measure with at most as many conversations as the servers have slots, and show the rows."""
    from benchmarks.perf_analyzer import PerfAnalyzerError
    from benchmarks.report import show
    from benchmarks.server import Counters
    from client.sound import SoundError
    from frontend.tick import TickError

    counts = numbers(arguments.conversations)
    try:
        slots = Counters.read(settings).slots * len(settings.triton.urls) * settings.triton.replicas
    except (OSError, KeyError) as error:
        port = settings.triton.metrics_port
        raise UserError(f"no Triton answers at {settings.triton.host}:{port} ({error}): ./sca serve first") from error
    if max(counts) > slots:
        raise UserError(
            f"--conversations: expected at most {slots}, the number of slots, got {max(counts)}: "
            f"serve with SCA_ENGINE_SLOTS={max(counts)}"
        )
    try:
        rows = measure(counts)
    except (TickError, PerfAnalyzerError, SoundError, OSError, RuntimeError) as error:
        raise UserError(str(error)) from error
    show(rows, arguments.build.resolve() / "bench" / f"{arguments.what}.json")


BENCHES = {
    "turn-bridge": Bench("end of turn to first audio, over WebSocket", _add_turn_arguments, _run_turn_bridge),
    "triton": Bench("delay of ticks over gRPC, in real time", _add_arguments, _run_triton),
    "bridge": Bench("delay of ticks over WebSocket, in real time", _add_arguments, _run_bridge),
    "perf-analyzer": Bench(
        "delay of ticks measured by NVIDIA's perf_analyzer", _add_perf_analyzer_arguments, _run_perf_analyzer
    ),
    "move": Bench("duration of a move to another server, by the conversation's length", _add_move_arguments, _run_move),
}
