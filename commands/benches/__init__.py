"""Arguments and output of each benchmark of `./sca bench`; benchmarks/ and training/judges/ measure."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NamedTuple

from commands.console import UserError
from config import Settings


class Bench(NamedTuple):
    """A benchmark of `./sca bench`: a summary for its help, its arguments, and its run, which prints the results."""

    summary: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, Settings], None]


def add_conversations(parser: argparse.ArgumentParser) -> None:
    """Add `--conversations`, parsed by `numbers`."""
    parser.add_argument(
        "--conversations", default="1,2,4,8", metavar="N,N,...", help="conversations at once (default: 1,2,4,8)"
    )


def numbers(text: str, option: str = "--conversations") -> list[int]:
    """Parse `1,2,4`; raise `UserError` unless all are whole numbers above 0."""
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise UserError(f"{option}: expected numbers above 0 such as 1,2,4, got {text!r}")
    return found
