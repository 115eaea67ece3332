"""`./sca bench understanding`, `voice`, `barge-in` and `quality`: answers of a running `./sca serve`, judged."""

from __future__ import annotations

import argparse
from pathlib import Path

from commands.benches import Bench, add_conversations, numbers
from commands.console import UserError, console
from config import Settings


def _add_understanding_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, metavar="FOLDER", help="recordings with their labels.json")
    add_conversations(parser)
    parser.add_argument(
        "--babble", default="24,18,12,6", metavar="DB,DB,...", help="levels of babble next to silence; '' for none"
    )
    parser.add_argument("--limit", type=int, help="maximum number of recordings")


def _add_voice_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path", type=Path, nargs="?", metavar="FILE", help="a message a line (default: training/judges/messages.txt)"
    )
    add_conversations(parser)
    parser.add_argument("--original", type=Path, metavar="FOLDER", help="styles of the original voice, to compare to")


def _add_quality_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path",
        type=Path,
        nargs="?",
        metavar="FOLDER",
        help="folder of FOLDER/ID/input.wav, also for the answers (default: recordings of flite's voices)",
    )
    add_conversations(parser)


def _run_understanding(arguments: argparse.Namespace, settings: Settings) -> None:
    from training.judges.dialogue import DialogueError, write_json
    from training.judges.understanding import UnderstandingError, bench_understanding, show

    levels, count = [None, *_decibels(arguments.babble)], max(numbers(arguments.conversations))
    try:
        orders = bench_understanding(settings, arguments.path, levels, count, arguments.limit)
    except (UnderstandingError, DialogueError, OSError) as error:
        raise UserError(str(error)) from error
    write_json(orders, arguments.build.resolve() / "bench" / "understanding.json")
    console.print(show(orders))


def _run_voice(arguments: argparse.Namespace, settings: Settings) -> None:
    from training.judges.dialogue import DialogueError, write_json
    from training.judges.voice import MESSAGES, VoiceError, bench_voice, show

    count = max(numbers(arguments.conversations))
    try:
        transcripts = bench_voice(settings, arguments.path or MESSAGES, count, arguments.original)
    except (VoiceError, DialogueError, OSError) as error:
        raise UserError(str(error)) from error
    write_json(transcripts, arguments.build.resolve() / "bench" / "voice.json")
    console.print(show(transcripts))


def _run_barge_in(arguments: argparse.Namespace, settings: Settings) -> None:
    from training.judges.barge_in import BargeInError, bench_barge_in, show
    from training.judges.dialogue import DialogueError, write_json

    try:
        result = bench_barge_in(settings, max(numbers(arguments.conversations)))
    except (BargeInError, DialogueError, OSError) as error:
        raise UserError(str(error)) from error
    write_json(result, arguments.build.resolve() / "bench" / "barge-in.json")
    console.print(*show(result))


def _run_quality(arguments: argparse.Namespace, settings: Settings) -> None:
    """Print the tables, and write the page; the answers of the first number of conversations go to the recordings."""
    from websockets.exceptions import WebSocketException

    from benchmarks.quality import bench_quality, write_outputs
    from benchmarks.quality_cases import QualityError, make_cases, read_cases
    from benchmarks.quality_report import show, write_page
    from training.judges.dialogue import DialogueError, write_json

    folder = arguments.build.resolve() / "bench" / "quality"
    recordings = arguments.path or folder / "recordings"
    try:
        if arguments.path is None:
            make_cases(recordings)
        found = bench_quality(settings, read_cases(recordings), numbers(arguments.conversations))
    except (QualityError, DialogueError, WebSocketException, OSError) as error:
        raise UserError(str(error)) from error
    loads, first = [load for load, _ in found], found[0][1]
    write_outputs(first)
    write_json(loads, folder / "quality.json")
    page = write_page(loads, first, folder)
    console.print(*show(loads), f"answers: next to the recordings in {recordings}; page: {page}")


def _decibels(text: str) -> list[float]:
    """Parse `24,18`; raise `UserError` unless all are numbers."""
    try:
        return [float(level) for level in text.split(",") if level]
    except ValueError as error:
        raise UserError(f"--babble: expected decibels such as 24,18,12,6, got {text!r}") from error


BENCHES = {
    "understanding": Bench(
        "share of exactly understood spoken orders", _add_understanding_arguments, _run_understanding
    ),
    "voice": Bench("word errors of a recogniser that reads the answers", _add_voice_arguments, _run_voice),
    "barge-in": Bench("noise, interruptions, ends of answers", add_conversations, _run_barge_in),
    "quality": Bench("turns and audio in Full-Duplex-Bench's folders", _add_quality_arguments, _run_quality),
}
