"""./sca test: lint, format, types, audit and tests."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat

from commands.audit import NOT_RUN
from commands.console import ENTRY, ROOT, console
from commands.debian import install_missing

PYTEST = [sys.executable, "-m", "pytest"]
CHECKS = {
    "lint": [sys.executable, "-m", "ruff", "check", "."],
    "format": [sys.executable, "-m", "ruff", "format", "--check", "--quiet", "."],
    "types": [sys.executable, "-m", "mypy"],
    "audit": [*ENTRY, "audit"],
}
NOT_LONG = ["-m", "not long"]
# Groups of tests, longest first: `group_of` in tests/groups.py. Tests of one server run in one process.
GROUPS = ("other", "running_pair", "served", "turn", "served_barista", "served_turns")
PROCESSES = 2  # groups at once: many tests wait for real time, and leave a core to the other group


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("--long", action="store_true", help="also the tests that take minutes")
    parser.add_argument("pytest_arguments", nargs=argparse.REMAINDER, help="run only pytest, with these arguments")


def run(arguments: argparse.Namespace) -> int:
    """Run every check, even after a failure; return 1 if one failed."""
    install_missing()
    if arguments.pytest_arguments:
        return subprocess.run([*PYTEST, *arguments.pytest_arguments], cwd=ROOT, check=False).returncode
    failed = [name for name, command in CHECKS.items() if not _passes(name, command)]
    selection = [] if arguments.long else NOT_LONG
    with ThreadPoolExecutor(PROCESSES) as pool:
        names = [f"tests: {group}" for group in GROUPS]
        commands = [[*PYTEST, *selection, "--group", group] for group in GROUPS]
        passed = pool.map(_passes, names, commands, repeat(True))
        failed += [name for name, is_passed in zip(names, passed, strict=True) if not is_passed]
    if failed:
        console.print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


def _passes(name: str, command: Sequence[str], at_once: bool = False) -> bool:
    """Run a check and return whether it passed; `at_once`: print its output at its end, not between another's."""
    started_s = time.monotonic()
    output, errors = (subprocess.PIPE, subprocess.STDOUT) if at_once else (None, None)
    run = subprocess.run(command, cwd=ROOT, stdout=output, stderr=errors, text=True, check=False)
    is_not_run = name == "audit" and run.returncode == NOT_RUN  # exit status of the audit without a network
    mark = "– not run:" if is_not_run else "[green]✓[/green]" if run.returncode == 0 else "[red]✗[/red]"
    if run.stdout:
        console.print(run.stdout, markup=False, soft_wrap=True)
    console.print(f"{mark} {name} [dim]({time.monotonic() - started_s:.1f} s)[/dim]")
    return run.returncode == 0 or is_not_run
