"""What commands say to a person."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from config import Settings, SettingsError

ROOT = Path(__file__).parent.parent
console = Console(stderr=True, highlight=False)


class UserError(Exception):
    """Something that the user can mend; shown as one line."""


def load_settings() -> Settings:
    """The settings, or `UserError`."""
    try:
        return Settings.load()
    except SettingsError as error:
        raise UserError(str(error)) from error


def add_build_argument(parser: object) -> None:
    """The folder that all generated files go to."""
    parser.add_argument(  # type: ignore[attr-defined]
        "--build", type=Path, default=ROOT / "build", metavar="FOLDER", help="where generated files go (default: build)"
    )


def quiet_libraries() -> None:
    """Lets transformers and its hub speak only of errors; their bars and warnings are not the user's concern."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "0" if sys.stderr.isatty() else "1")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


class Steps:
    """A line a step: a spinner and the seconds while it runs, a tick and the seconds when it is done."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._step: str | None = None
        self._progress = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console, transient=True
        )

    def begin(self, step: str) -> None:
        """Ends the step before, begins this one."""
        self.end()
        self._step, self._begun = step, time.monotonic()
        if not console.is_terminal:
            console.print(f"  {step} ...", soft_wrap=True)
        self._progress.add_task(step)

    def update(self, text: str) -> None:
        """How far the step under way is, where a spinner shows it."""
        for task in self._progress.task_ids:
            self._progress.update(task, description=text)

    def end(self) -> None:
        """Ends the step under way."""
        if self._step is not None:
            for task in self._progress.task_ids:
                self._progress.remove_task(task)
            took = time.monotonic() - self._begun
            console.print(f"[green]✓[/green] {self._step} [dim]({took:.1f} s)[/dim]", soft_wrap=True)
            self._step = None


@contextmanager
def steps() -> Iterator[Steps]:
    """Steps shown while the block runs; the last one counts as done only if the block ended well."""
    shown = Steps()
    with shown._progress:
        yield shown
        shown.end()
