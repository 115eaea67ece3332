"""The supervisor of a Triton, its log and its shared memory, without a server."""

from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path

from commands.serve import Supervisor
from config import Settings
from launch.triton_server import TritonError, loading_progress, remove_orphaned_regions


class FakeTriton:
    """A Triton that has ended; it comes up at the restart number `up_after`, and never at 0."""

    def __init__(self, up_after: int = 0, fails_to_load: bool = False):
        self.up_after, self.fails_to_load = up_after, fails_to_load
        self.restarts = 0

    def is_running(self) -> bool:
        return 0 < self.up_after <= self.restarts

    def log_tail(self) -> str:
        return "out of luck"

    def restart(self) -> None:
        self.restarts += 1

    def wait_until_ready(self, given_up) -> None:
        if self.fails_to_load and not self.is_running():
            raise TritonError("Triton ended while loading")


def test_triton_that_keeps_ending_is_not_started_again():
    triton, max_restarts = FakeTriton(), Settings.load(environ={}).triton.max_restarts
    supervisor = Supervisor(triton, threading.Event(), max_restarts=max_restarts)
    assert all(supervisor.keep_running() for _ in range(max_restarts))
    assert not supervisor.keep_running()
    assert triton.restarts == max_restarts == 3
    assert "Triton has failed 4 times in 10 minutes:\nout of luck" in supervisor.failure


def test_restart_that_fails_is_repeated():
    triton = FakeTriton(up_after=2, fails_to_load=True)
    supervisor = Supervisor(triton, threading.Event())
    assert supervisor.keep_running(), "not yet"
    assert supervisor.failure
    assert supervisor.keep_running()
    assert (triton.restarts, supervisor.failure) == (2, "")


def test_shared_memory_of_a_killed_serve_is_removed(tmp_path: Path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    here = os.stat("/proc/self/ns/pid").st_ino
    names = [
        f"sca-{here}-{ended.pid}-region", f"sca-{here}-{os.getpid()}-region", f"sca-1-{ended.pid}-elsewhere", "another",
    ]  # fmt: skip
    for name in names:
        (tmp_path / name).touch()
    remove_orphaned_regions(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[1:])


def test_loading_reports_the_share_of_the_weights(tmp_path: Path):
    """The progress bar is that of transformers, in Triton's log."""
    log = tmp_path / "log"
    log.write_bytes(b"I1124 server.cc:1\n")
    assert loading_progress(log) == ""
    with log.open("ab") as more:
        more.write(b"Loading weights:   0%|   | 0/366\rLoading weights:  45%|###  | 165/366 [00:01<00:01")
    assert loading_progress(log) == "45%"
