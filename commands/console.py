"""Output of the commands on a terminal, and the errors that a user can fix."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, TextIO, cast

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from config import Settings, SettingsError
from config.proxy import bypass_proxies
from config.secret import redact, secrets_in

ROOT = Path(__file__).parent.parent
ENTRY = [sys.executable, str(ROOT / "commands" / "entry")]  # beginning of the command line of `./sca`
console = Console(stderr=True, highlight=False)


class UserError(Exception):
    """An error that the user can fix; printed as one line."""


class RedactedStream:
    """A text stream that hides secrets: those of the environment, and those of the settings once they are loaded."""

    secrets: ClassVar[set[str]] = set()

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text without its secrets."""
        self._stream.write(redact(text, self.secrets))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write texts without their secrets."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def hide(secrets: Iterable[str]) -> None:
    """Add secrets to those that `hide_secrets` removes."""
    RedactedStream.secrets.update(filter(None, secrets))


def hide_secrets() -> None:
    """Remove secrets from everything that this process writes to its standard output and standard error."""
    hide(secrets_in(os.environ))
    sys.stdout = cast(TextIO, RedactedStream(sys.stdout))
    sys.stderr = cast(TextIO, RedactedStream(sys.stderr))


def load_settings() -> Settings:
    """Return the settings; raise `UserError` if they are invalid."""
    try:
        settings = Settings.load()
    except SettingsError as error:
        raise UserError(str(error)) from error
    hide(settings.secrets)
    bypass_proxies(os.environ, [url.rpartition(":")[0].strip("[]") for url in settings.triton.urls])
    return settings


def add_build_argument(parser: object) -> None:
    """Add `--build`, the folder of all generated files."""
    parser.add_argument(  # type: ignore[attr-defined]
        "--build",
        type=Path,
        default=ROOT / "build",
        metavar="FOLDER",
        help="for generated files (default: build)",
    )


def quiet_libraries() -> None:
    """Reduce the log of transformers and its hub to errors: progress bars and warnings do not concern the user."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "0" if sys.stderr.isatty() else "1")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


class Steps:
    """Progress of a command, one line a step: a spinner while the step runs, a check mark and its duration after it."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._step: str | None = None
        self._progress = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console, transient=True
        )

    def begin(self, step: str) -> None:
        """End the previous step, and begin the next one."""
        self.end()
        self._step, self._begun = step, time.monotonic()
        if not console.is_terminal:
            console.print(f"  {step} ...", soft_wrap=True)
        self._progress.add_task(step)

    def update(self, text: str) -> None:
        """Replace the text next to the spinner of the current step."""
        for task in self._progress.task_ids:
            self._progress.update(task, description=text)

    def end(self) -> None:
        """End the current step."""
        if self._step is not None:
            for task in self._progress.task_ids:
                self._progress.remove_task(task)
            took = time.monotonic() - self._begun
            console.print(f"[green]✓[/green] {self._step} [dim]({took:.1f} s)[/dim]", soft_wrap=True)
            self._step = None


@contextmanager
def steps() -> Iterator[Steps]:
    """Show the steps of the block; the last step counts as done only if the block raises nothing."""
    shown = Steps()
    with shown._progress:
        yield shown
        shown.end()
