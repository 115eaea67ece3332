"""Helpers that read the state of a running server, its processes and its probes, and wait for a state."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import psutil
from websockets.sync.client import ClientConnection

from benchmarks.server import Counters
from tests.conftest import Served
from tests.turns import TICK

BACK_S = 120  # timeout of a server's restart, in seconds
EMPTY_S = 60  # timeout of the end of all conversations on a server, in seconds
ENDED_S = 60  # timeout of the end of a server's processes, in seconds


class Reachable(Protocol):
    """A bridge."""

    @property
    def http(self) -> str: ...


def speak(client: ClientConnection, pcm: np.ndarray) -> None:
    """Send a tick and wait for its answer, which may be silence."""
    client.send(pcm[:TICK].tobytes())
    assert answer_kind(client) == "sound"


def answer_kind(client: ClientConnection) -> str:
    """Return `sound` or `error`: the kind of the next answer to a tick."""
    while True:
        message = client.recv(timeout=20)
        if isinstance(message, bytes):
            return "sound"
        if json.loads(message)["type"] == "error":
            return "error"


def taken(served: Served) -> int:
    """Return the number of conversations that a server holds."""
    return Counters.read(served.settings).slots_taken


def tritons_of(served: Served) -> list[int]:
    """Return the process ids of a serve command's tritonservers."""
    children = subprocess.run(
        ["pgrep", "--parent", str(served.process.pid), "tritonserver"], capture_output=True, text=True, check=True
    )
    return [int(pid) for pid in children.stdout.split()]


def triton_of(served: Served) -> int:
    (triton,) = tritons_of(served)
    return triton


def stub_of(served: Served, stage: str) -> int:
    """Return the process id of a stage's Python process."""
    found = subprocess.run(
        ["pgrep", "--parent", str(triton_of(served)), "--full", f"stub.*/{stage}/"], capture_output=True, text=True
    )
    return int(found.stdout.split()[0])


def descendants(pid: int) -> list[psutil.Process]:
    """Return a process and all that it has started."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def expect_nothing_left(processes: list[psutil.Process], owner: int) -> None:
    """Check that all processes end, and that no shared memory of the serve command `owner` remains."""
    wait_until(lambda: not any(runs(process) for process in processes), ENDED_S)
    assert not list(Path("/dev/shm").glob(f"sca-*-{owner}-*"))


def runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_for_readiness(served: Reachable, ready: bool, seconds: float, path: str = "/readyz") -> None:
    wait_until(lambda: is_ready(served, path) == ready, seconds)


def is_ready(served: Reachable, path: str = "/readyz") -> bool:
    """Return True if a probe succeeds now."""
    try:
        with urllib.request.urlopen(f"{served.http}{path}"):
            return True
    except urllib.error.HTTPError:
        return False


def wait_until_listening(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    def is_listening() -> bool:
        assert process.poll() is None, log.read_text()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
        return False

    wait_until(is_listening, 30)


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    """Wait for a condition; fail the test after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s"
        time.sleep(0.1)
