"""./sca export: conversion of a checkpoint to a model repository."""

from __future__ import annotations

import argparse
import sys

from commands.console import UserError, add_build_argument, load_settings, quiet_libraries, steps
from config import SettingsError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_build_argument(parser)
    parser.add_argument(
        "--tensorrt",
        action="store_true",
        help="also the graphs, configs and script of TensorRT engines; builds the engines if trtexec is on PATH",
    )


def run(arguments: argparse.Namespace) -> int:
    """Build the repository, and print its folder."""
    settings = load_settings()
    quiet_libraries()
    from safetensors import SafetensorError

    from engine.errors import CheckpointError, MemoryRefusedError
    from export.onnx_stage import ExportError
    from export.repository import build_repository

    try:
        with steps() as shown:
            repository = build_repository(settings, arguments.build.resolve(), shown.begin, arguments.tensorrt)
            if arguments.tensorrt:
                try:
                    from export.tensorrt import build_engines, build_tensorrt_repository
                except ModuleNotFoundError as error:
                    raise UserError(
                        f"--tensorrt needs {error.name}: deploy/install.sh tensorrt {sys.prefix}"
                    ) from error
                repository = build_tensorrt_repository(repository, shown.begin)
                build_engines(repository, shown.begin)
    except (CheckpointError, ExportError, MemoryRefusedError, SettingsError) as error:
        raise UserError(str(error)) from error
    except (OSError, ValueError, SafetensorError) as error:  # a file of the checkpoint is missing or broken
        raise UserError(f"the checkpoint cannot be exported: {error}") from error
    print(repository)
    return 0
