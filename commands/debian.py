"""Programs that the checks need, and the installation of their Debian packages."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess

from commands.console import UserError, console

PROGRAMS = {  # program to the Debian package that contains it
    "chromium": "chromium",  # browser of the page's tests
    "chromedriver": "chromium-driver",
    "curl": "curl",  # runs client/http_curl.sh
    "espeak-ng": "espeak-ng",  # speech of the tests
    "flite": "flite",  # orders in voices that are not in the barista's training data
    "haproxy": "haproxy",  # load balancer in front of two servers
    "node": "nodejs",  # runs client/node
    "npm": "npm",
    "promtool": "prometheus",  # checks and tests the alarm rules
    "ps": "procps",  # lists the processes that remain
    "sox": "sox",  # resamples the speech
}


def install_missing() -> None:
    """Install the packages whose programs are not on PATH.

    Raises `UserError` with the command to run if this user is not root and `sudo` needs a password.
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
    """Return the prefix of a command that needs root; None if this user has no such right."""
    if os.geteuid() == 0:
        return []
    sudo = ["sudo", "-n"]
    allowed = shutil.which("sudo") and subprocess.run([*sudo, "true"], capture_output=True, check=False).returncode == 0
    return sudo if allowed else None


def _run_shown(command: list[str]) -> None:
    """Run a command with its latest output line as the status; raise `UserError` with the output if it fails."""
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
