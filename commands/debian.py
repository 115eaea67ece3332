"""The programs that the checks run and that Debian's packages bring."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess

from commands.console import UserError, console

PROGRAMS = {  # program: the Debian package that brings it
    "chromium": "chromium",  # the page's tests drive it
    "chromedriver": "chromium-driver",
    "curl": "curl",  # a client of its own
    "espeak-ng": "espeak-ng",  # the speech in the tests
    "flite": "flite",  # speaks orders in voices that the barista was not trained on
    "haproxy": "haproxy",  # a balancer before two servers
    "node": "nodejs",  # a client of its own
    "npm": "npm",
    "promtool": "prometheus",  # checks the alarm rules, and runs their tests
    "ps": "procps",  # tells which processes are left
    "sox": "sox",  # resamples that speech
}


def install_missing() -> None:
    """Installs the packages whose programs are not on PATH.

    Raises `UserError` naming them where neither root nor `sudo` without a password may install.
    """
    packages = [package for program, package in PROGRAMS.items() if not shutil.which(program)]
    if not packages:
        return
    command = ["apt-get", "install", "--yes", "--no-install-recommends", *packages]
    prefix = _privilege()
    if prefix is None or not shutil.which("apt-get"):
        raise UserError(f"the checks need programs that are not installed: {shlex.join(['sudo', *command])}")
    console.print(f"sca: installing {', '.join(packages)} (Debian packages)")
    for step in (["apt-get", "update", "--quiet"], command):
        _run_shown([*prefix, *step])


def _privilege() -> list[str] | None:
    """What to put before a command that root must run; None where this user may not."""
    if os.geteuid() == 0:
        return []
    sudo = ["sudo", "-n"]
    allowed = shutil.which("sudo") and subprocess.run([*sudo, "true"], capture_output=True, check=False).returncode == 0
    return sudo if allowed else None


def _run_shown(command: list[str]) -> None:
    """Runs a command whose lines become one status line; all of them are shown if it fails."""
    lines: list[str] = []
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with (
        console.status(shlex.join(command[:3])) as status,
        subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process,
    ):
        for line in process.stdout or ():
            lines.append(line)
            status.update(line.strip()[:100])
    if process.returncode != 0:
        raise UserError(f"{shlex.join(command)} failed:\n{''.join(lines[-20:])}")
