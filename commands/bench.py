"""./sca bench: how fast it is, in tables, JSON and a picture."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from commands.console import UserError, add_build_argument, console, load_settings, quiet_libraries
from config import Settings, SettingsError

if TYPE_CHECKING:
    from benchmarks.row import Row
    from engine.checkpoint import Checkpoint

HERE = {
    "engine": "ticks as fast as they go, in the dialect sca",
    "age": "one conversation of 5,000 ticks, likewise",
    "turn": "end of turn to first codes, in the dialect turn",
}
ALONE = {
    "bridge-load": "the bridge without the engine, on one core, on each protocol",
    "churn": "its memory while conversations come and go",
}
SERVED = {
    "turn-bridge": "end of turn to first sound, over WebSocket",
    "triton": "over gRPC, in real time",
    "bridge": "over WebSocket, in real time",
    "perf-analyzer": "by NVIDIA's tool, in real time",
}
MOVED = {"move": "how long another server takes to read a conversation, by its length"}
JUDGED = {
    "understanding": "spoken orders of a folder, taken exactly or not",
    "voice": "typed messages, and a recogniser that reads the answers",
    "barge-in": "noise, interruptions, answers that end",
    "quality": "turns and sound, at the pace of microphones, in Full-Duplex-Bench's folders",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    add_build_argument(parser)
    told = "; ".join(
        f"{what}: {how}"
        for what, how in (*HERE.items(), *ALONE.items(), *SERVED.items(), *MOVED.items(), *JUDGED.items())
    )
    parser.add_argument(
        "what",
        choices=(*HERE, *ALONE, *SERVED, *MOVED, *JUDGED),
        help=f"{told}. The first five bring what they need, the others run against ./sca serve",
    )
    parser.add_argument(
        "--conversations", default="1,2,4,8", metavar="N,N,...", help="conversations at once (default: 1,2,4,8)"
    )
    parser.add_argument("--seconds", type=float, default=30, help="served: seconds measured for each (default: 30)")
    parser.add_argument(
        "--wav",
        type=Path,
        help="perf-analyzer, turn-bridge: what the conversations say; perf-analyzer's is 16 kHz mono",
    )
    parser.add_argument("--beside", type=int, metavar="PORT", help="turn-bridge: of another bridge, in the same run")
    parser.add_argument("--idle", type=int, default=0, help="bridge-load: silent WebSockets beside them (default: 0)")
    parser.add_argument("--minutes", type=float, default=30, help="churn: how long (default: 30)")
    judged = parser.add_argument_group("understanding, voice, quality")
    judged.add_argument(
        "path",
        type=Path,
        nargs="?",
        help="recordings with their labels.json; a file with a message a line; quality: FOLDER/ID/input.wav, "
        "where its answers go too (default: recordings made of flite's voices)",
    )
    judged.add_argument("--babble", default="24,18,12,6", metavar="DB,DB,...", help="further levels; '' for none")
    judged.add_argument("--limit", type=int, help="only so many recordings")
    judged.add_argument(
        "--original", type=Path, metavar="FOLDER", help="voice: styles of the original voice, beside it"
    )
    engine = parser.add_argument_group("engine")
    engine.add_argument("--ticks", type=int, default=100, help="ticks, or turns, measured for each (default: 100)")
    engine.add_argument(
        "--config", dest="architecture", choices=("served", "full"), default="served", help="full: the 30B architecture"
    )
    engine.add_argument("--age-s", type=float, default=0, help="how old the conversations are (default: 0)")
    engine.add_argument("--sampled", action="store_true", help="sampling as by default, in place of greedy")
    engine.add_argument("--paced", action="store_true", help="a tick when it is due, in place of as fast as they go")
    engine.add_argument("--baseline", choices=("transformers",), help="the same ticks through transformers too")
    engine.add_argument("--baseline-ticks", type=int, help="fewer of them (default: as many)")
    engine.add_argument("--profile", action="store_true", help="the slowest parts of the last number of conversations")


def run(arguments: argparse.Namespace) -> int:
    """Measures, prints, writes build/bench/WHAT.json and its picture."""
    settings = load_settings()
    conversations = parse_conversations(arguments.conversations)
    quiet_libraries()
    from benchmarks.report import show

    build: Path = arguments.build.resolve()
    if arguments.what == "move":
        return _move(settings, build / "bench" / "move.json")
    if arguments.what == "quality":
        return _quality(settings, arguments.path, conversations, build / "bench" / "quality")
    if arguments.what in JUDGED:
        return _judge(arguments, settings, max(conversations))
    if arguments.what == "churn":
        return _churn(settings, max(conversations), arguments.minutes, build / "bench" / "churn.json")
    bench = _here if arguments.what in HERE else _alone if arguments.what in ALONE else _served
    rows = bench(arguments, settings, conversations)
    show(rows, build / "bench" / f"{arguments.what}.json")
    return 0


def _alone(arguments: argparse.Namespace, settings: Settings, conversations: list[int]) -> list[Row]:
    from benchmarks.bridge_load import bench_bridge_load

    try:
        return bench_bridge_load(settings, conversations, arguments.seconds, arguments.idle)
    except (OSError, RuntimeError) as error:
        raise UserError(str(error)) from error


def _churn(settings: Settings, conversations: int, minutes: float, path: Path) -> int:
    from benchmarks.bridge_load import bench_churn, show_churn
    from training.judges.dialogue import write_json

    try:
        samples = bench_churn(settings, conversations, minutes)
    except (OSError, RuntimeError) as error:
        raise UserError(str(error)) from error
    write_json(samples, path)
    console.print(show_churn(samples))
    return 0


def _judge(arguments: argparse.Namespace, settings: Settings, conversations: int) -> int:
    """What the default checkpoint's card tells of: tables, and every answer in build/bench/WHAT.json."""
    from training.judges import barge_in, understanding, voice
    from training.judges.dialogue import DialogueError, write_json

    path = arguments.build.resolve() / "bench" / f"{arguments.what}.json"
    try:
        if arguments.what == "understanding":
            levels = [None, *parse_decibels(arguments.babble)]
            if not arguments.path:
                raise UserError("understanding needs a FOLDER: recordings with their labels.json")
            orders = understanding.bench_understanding(settings, arguments.path, levels, conversations, arguments.limit)
            write_json(orders, path)
            console.print(understanding.show(orders))
        elif arguments.what == "voice":
            messages = arguments.path or voice.MESSAGES
            transcripts = voice.bench_voice(settings, messages, conversations, arguments.original)
            write_json(transcripts, path)
            console.print(voice.show(transcripts))
        else:
            result = barge_in.bench_barge_in(settings, conversations)
            write_json(result, path)
            console.print(*barge_in.show(result))
    except (understanding.UnderstandingError, voice.VoiceError, barge_in.BargeInError, DialogueError, OSError) as error:
        raise UserError(str(error)) from error
    return 0


def _quality(settings: Settings, recordings: Path | None, conversations: list[int], folder: Path) -> int:
    """Tables, a page, and the answers beside the recordings, of the first number of conversations."""
    from websockets.exceptions import WebSocketException

    from benchmarks.quality import bench_quality, write_outputs
    from benchmarks.quality_cases import QualityError, make_cases, read_cases
    from benchmarks.quality_report import show, write_page
    from training.judges.dialogue import DialogueError, write_json

    try:
        if recordings is None:
            recordings = folder / "recordings"
            make_cases(recordings)
        found = bench_quality(settings, read_cases(recordings), conversations)
    except (QualityError, DialogueError, WebSocketException, OSError) as error:
        raise UserError(str(error)) from error
    loads, first = [load for load, _ in found], found[0][1]
    write_outputs(first)
    write_json(loads, folder / "quality.json")
    console.print(
        *show(loads), f"answers: beside the recordings in {recordings}; page: {write_page(loads, first, folder)}"
    )
    return 0


def _move(settings: Settings, path: Path) -> int:
    from benchmarks.move import bench_move, show
    from frontend.tick import TickError
    from training.judges.dialogue import write_json

    try:
        moves = bench_move(settings)
    except TickError as error:
        raise UserError(f"{error} (./sca serve first)") from error
    write_json(moves, path)
    console.print(show(moves))
    return 0


def parse_decibels(text: str) -> list[float]:
    """`24,18` as numbers. Raises `UserError`."""
    try:
        return [float(level) for level in text.split(",") if level]
    except ValueError as error:
        raise UserError(f"--babble is {text!r}, expected decibels such as 24,18,12,6") from error


def parse_conversations(text: str, option: str = "--conversations") -> list[int]:
    """`1,2,4` as numbers. Raises `UserError`."""
    try:
        conversations = [int(part) for part in text.split(",")]
    except ValueError:
        conversations = []
    if not conversations or min(conversations) < 1:
        raise UserError(f"{option} is {text!r}, expected numbers above 0 such as 1,2,4")
    return conversations


def _here(arguments: argparse.Namespace, settings: Settings, conversations: list[int]) -> list[Row]:
    from benchmarks.engine import bench_age, bench_engine, bench_transformers, profile
    from benchmarks.report import write
    from benchmarks.turn import bench_turn
    from engine.errors import CheckpointError, MemoryRefusedError

    try:
        checkpoint = _checkpoint(arguments, settings)
        if arguments.what == "age":
            return bench_age(checkpoint, settings)
        of_turns = arguments.what == "turn"
        if of_turns:
            measured = bench_turn(checkpoint, settings, conversations, arguments.ticks)
        else:
            how = (arguments.ticks, arguments.age_s, arguments.paced, arguments.sampled)
            measured = bench_engine(checkpoint, settings, conversations, *how)
        rows: list[Row] = []
        for row in measured:
            rows.append(row)
            write(rows, arguments.build.resolve() / "bench" / f"{arguments.what}.json")  # should the next never end
            console.print(
                f"{row.what}, {row.conversations} conversations: p50 {row.p50_ms:.1f} ms, p99 {row.p99_ms:.1f}"
            )
        if of_turns:
            return rows
        if arguments.profile:
            print(profile(checkpoint, settings, conversations[-1], arguments.age_s))
        if arguments.baseline:
            rows.append(bench_transformers(checkpoint, settings, arguments.baseline_ticks or arguments.ticks))
    except (CheckpointError, MemoryRefusedError, SettingsError) as error:
        raise UserError(str(error)) from error
    return rows


def _checkpoint(arguments: argparse.Namespace, settings: Settings) -> Checkpoint:
    from engine.checkpoint import load_checkpoint, resolve_device, resolve_dtype

    if arguments.architecture == "served":
        from export.repository import find_checkpoint

        return load_checkpoint(find_checkpoint(settings, arguments.build.resolve(), console.print), settings.qwen)
    from benchmarks.full_size import full_checkpoint

    device = resolve_device(settings.qwen.device_map)
    with console.status("random weights for 34.5 billion parameters"):
        return full_checkpoint(device, resolve_dtype(settings.qwen.torch_dtype, device))


def _served(arguments: argparse.Namespace, settings: Settings, conversations: list[int]) -> list[Row]:
    from benchmarks.bridge import bench_bridge
    from benchmarks.perf_analyzer import PerfAnalyzerError, bench_perf_analyzer
    from benchmarks.server import Counters
    from benchmarks.triton import bench_triton
    from benchmarks.turn_bridge import bench_turn_bridge
    from client.sound import SoundError, read_sound, to_pcm16
    from frontend.tick import TickError

    try:
        slots = Counters.read(settings).slots * len(settings.triton.urls) * settings.triton.replicas
    except (OSError, KeyError) as error:
        port = settings.triton.metrics_port
        raise UserError(f"no Triton answers at {settings.triton.host}:{port} ({error}): ./sca serve first") from error
    if max(conversations) > slots:
        raise UserError(
            f"--conversations asks for {max(conversations)}, there are {slots} slots: "
            f"serve with SCA_ENGINE_SLOTS={max(conversations)}"
        )
    benches: dict[str, Callable[..., list[Row]]] = {"triton": bench_triton, "bridge": bench_bridge}
    try:
        if arguments.what in benches:
            return benches[arguments.what](settings, conversations, arguments.seconds)
        if arguments.what == "turn-bridge":
            speech = to_pcm16(read_sound(arguments.wav)) if arguments.wav else None
            return bench_turn_bridge(settings, conversations, arguments.seconds, speech, arguments.beside)
        if not arguments.wav:
            raise UserError("perf-analyzer needs --wav FILE: what the conversations say, 16 kHz mono")
        folder = arguments.build.resolve() / "perf_analyzer"
        return bench_perf_analyzer(settings, conversations, arguments.seconds, arguments.wav, folder)
    except (TickError, PerfAnalyzerError, SoundError, OSError, RuntimeError) as error:
        raise UserError(str(error)) from error
