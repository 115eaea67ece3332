"""./sca export: a checkpoint -> a model repository."""

from __future__ import annotations

import argparse
from pathlib import Path

from commands.console import Steps, UserError, add_build_argument, load_settings, quiet_libraries, steps
from config import Settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    add_build_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Builds the repository and prints its place."""
    settings = load_settings()
    with steps() as shown:
        repository = export(settings, arguments.build, shown)
    print(repository)
    return 0


def export(settings: Settings, build: Path, shown: Steps) -> Path:
    """The repository in `build`, built if need be. Raises `UserError`."""
    quiet_libraries()
    from engine.errors import CheckpointError
    from export.onnx_stage import ExportError
    from export.repository import build_repository

    try:
        return build_repository(settings, build.resolve(), shown.begin)
    except (CheckpointError, ExportError) as error:
        raise UserError(str(error)) from error
