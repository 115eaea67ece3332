"""./sca soak: hours of conversations that start and end at a running server."""

from __future__ import annotations

import argparse
from pathlib import Path

from commands.console import UserError, add_build_argument, console, load_settings, quiet_libraries


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_build_argument(parser)
    parser.add_argument("--hours", type=float, default=1.0, metavar="H", help="duration (default: 1)")
    parser.add_argument(
        "--sessions", type=int, metavar="N", help="conversations at once (default: one more than the server's slots)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the soak, print its figures, write build/bench/soak.json and its picture; return 1 if it found a problem."""
    settings = load_settings()
    if settings.engine.dialect != "turn":
        raise UserError(f"engine.dialect: expected 'turn' for soak, got {settings.engine.dialect!r}")
    if arguments.hours <= 0 or (arguments.sessions is not None and arguments.sessions < 1):
        raise UserError(f"--hours, --sessions: expected numbers above 0, got {arguments.hours}, {arguments.sessions}")
    quiet_libraries()
    import torch
    from websockets.exceptions import WebSocketException

    from benchmarks.plot import draw_soak
    from benchmarks.server import Counters
    from benchmarks.soak import show, soak
    from engine.checkpoint import load_checkpoint, resolve_device, resolve_dtype
    from engine.errors import CheckpointError
    from export.repository import find_checkpoint
    from training.judges.dialogue import DialogueError, write_json

    build: Path = arguments.build.resolve()
    try:
        sessions = arguments.sessions or Counters.read(settings).slots + 1
        checkpoint = None
        if resolve_dtype(settings.qwen.torch_dtype, resolve_device(settings.qwen.device_map)) == torch.float32:
            with console.status("reference answers of transformers"):
                checkpoint = load_checkpoint(find_checkpoint(settings, build, console.print), settings.qwen)
        found = soak(settings, checkpoint, sessions, arguments.hours * 3600)
    except (CheckpointError, DialogueError, WebSocketException, OSError, KeyError) as error:
        raise UserError(f"no soak: {error} (./sca serve first)") from error
    file = build / "bench" / "soak.json"
    write_json(found, file)
    console.print(
        *show(found), f"all figures: {file}", f"and their picture: {draw_soak(found, file.with_suffix('.png'))}"
    )
    problems = found.problems()
    for problem in problems:
        console.print(f"[red]{problem}[/red]", markup=True)
    return int(bool(problems))
