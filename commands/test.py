"""./sca test: lint, format, types, audit and tests."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

from commands.audit import NOT_RUN
from commands.console import ROOT, console
from commands.debian import install_missing

CHECKS = {
    "lint": [sys.executable, "-m", "ruff", "check", "."],
    "format": [sys.executable, "-m", "ruff", "format", "--check", "--quiet", "."],
    "types": [sys.executable, "-m", "mypy"],
    "audit": [sys.executable, "-m", "commands", "audit"],
    "tests": [sys.executable, "-m", "pytest"],
}
NOT_LONG = ["-m", "not long"]
PROCESSES = ["--numprocesses", "2", "--dist", "loadgroup"]  # see `pytest_collection_modifyitems` in tests/conftest.py


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("--long", action="store_true", help="also the tests that take minutes")
    parser.add_argument("pytest_arguments", nargs=argparse.REMAINDER, help="run only pytest, with these arguments")


def run(arguments: argparse.Namespace) -> int:
    """Run every check, even after a failure; return 1 if one failed."""
    install_missing()
    if arguments.pytest_arguments:
        return subprocess.run([*CHECKS["tests"], *arguments.pytest_arguments], cwd=ROOT, check=False).returncode
    failed = []
    for name, command in CHECKS.items():
        selection = (PROCESSES + NOT_LONG * (not arguments.long)) if name == "tests" else []
        started_s = time.monotonic()
        status = subprocess.run([*command, *selection], cwd=ROOT, check=False).returncode
        is_not_run = name == "audit" and status == NOT_RUN  # exit status of the audit without a network
        mark = "– not run:" if is_not_run else "[green]✓[/green]" if status == 0 else "[red]✗[/red]"
        console.print(f"{mark} {name} [dim]({time.monotonic() - started_s:.1f} s)[/dim]")
        if status != 0 and not is_not_run:
            failed.append(name)
    if failed:
        console.print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0
