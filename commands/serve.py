"""./sca serve: Triton and the bridge, up together and down together."""

from __future__ import annotations

import argparse
import fcntl
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from commands.bridge import BridgeServer, address, bridge_server, run_until_stopped
from commands.console import UserError, add_build_argument, console, load_settings, steps
from commands.ports import wanted_ports
from config import Settings
from launch.triton_install import TritonMissingError
from launch.triton_server import TritonError, TritonServer

WATCH_S = 0.5  # how often is looked whether Triton still runs
HEARD_OF_S = 20.0  # in which the bridge hears that the engine answers again
MOST_RESTARTS = 3  # of Triton, in so many seconds:
RESTARTS_WINDOW_S = 600


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    add_build_argument(parser)
    parser.add_argument("--verbose", action="store_true", help="let Triton log every request")


def run(arguments: argparse.Namespace) -> int:
    """Serves until Ctrl-C or SIGTERM; a Triton that ends is started anew, a few times."""
    settings = load_settings()
    check_ports(settings)
    bridge = bridge_server(settings)
    lock = lock_build(arguments.build)
    try:
        repository = export(arguments.build)
        build: Path = arguments.build.resolve()
        log = build / "triton.log"
        with TritonServer(repository, build / "triton", settings, log, verbose=arguments.verbose) as triton:
            with steps() as shown:
                shown.begin("Triton")
                triton.wait_until_ready(lambda progress: shown.update(f"Triton: weights {progress}"))
            console.print(f"  [dim]{triton.log_message('the engine takes')}[/dim]", highlight=False)
            return _serve_bridge(bridge, settings, triton)
    except (TritonError, TritonMissingError) as error:
        raise UserError(str(error)) from error
    finally:
        lock.close()


def lock_build(build: Path) -> IO[str]:
    """A lock on `build` until it is closed, or this process ends. Raises `UserError`."""
    build.mkdir(parents=True, exist_ok=True)
    lock = (build / "serve.lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(
            f"another ./sca serve runs on {build}; give this one a folder of its own: --build FOLDER"
        ) from error
    return lock


def export(build: Path) -> Path:
    """The repository that `./sca export` makes, in a process of its own: torch has no place in the bridge's."""
    command = [sys.executable, "-m", "commands", "export", "--build", str(build)]
    made = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if made.returncode != 0:
        raise SystemExit(made.returncode)  # it has said why
    return Path(made.stdout.strip())


def check_ports(settings: Settings) -> None:
    """Raises `UserError` naming the setting whose port cannot be had."""
    for wanted in wanted_ports(settings):
        problem = wanted.problem()
        if problem:
            raise UserError(
                f"port {wanted.port} on {wanted.host} {problem}; choose another {wanted.setting}, "
                f"for example {wanted.variable}={wanted.port + 100}"
            )


def _serve_bridge(bridge: BridgeServer, settings: Settings, triton: TritonServer) -> int:
    """Runs the bridge in this thread, and keeps Triton running; returns the exit status. Raises `UserError`."""
    over = threading.Event()
    supervisor = Supervisor(triton, over, lambda: bridge.bridge.engine_problem)

    def watch() -> None:
        told = False
        while not over.wait(WATCH_S):
            if bridge.started and not told:
                told = True
                console.print(f"\n  Open [bold]{address(settings)}[/bold] and speak.  Ctrl-C ends it.\n")
            try:
                goes_on = supervisor.keep_running()
            except Exception as error:  # a watcher that is dead would watch nothing
                supervisor.failure, goes_on = f"Triton cannot be watched: {error!r}", False
            if not goes_on:
                bridge.should_exit = True
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        run_until_stopped(bridge)
    finally:
        over.set()
        watcher.join()
        console.print("ending Triton ...")
    if supervisor.failure and not supervisor.was_ended:
        raise UserError(supervisor.failure)
    return 0


class Supervisor:
    """Starts Triton anew when it has ended, or its engine is dead; meanwhile the bridge is not ready and says so."""

    def __init__(
        self, triton: TritonServer, over: threading.Event, engine_problem: Callable[[], str | None] = lambda: None
    ):
        """`over` is set when all is to end; `engine_problem` says why the engine counts as dead."""
        self._triton, self._over, self._engine_problem = triton, over, engine_problem
        self._restarts: list[float] = []
        self.failure = ""  # why it is not started anew any more
        self.was_ended = False  # it failed since all is to end

    def keep_running(self) -> bool:
        """False when Triton has ended and does not come up again."""
        problem = self._engine_problem() if self._triton.is_running() else "Triton ended"
        if not problem:
            return True
        now_s = time.monotonic()
        self._restarts = [at_s for at_s in self._restarts if at_s > now_s - RESTARTS_WINDOW_S]
        log_tail = self._triton.log_tail()
        if len(self._restarts) == MOST_RESTARTS:
            minutes = RESTARTS_WINDOW_S // 60
            self.failure = f"Triton has failed {MOST_RESTARTS + 1} times in {minutes} minutes:\n{log_tail}"
            return False
        self._restarts.append(now_s)
        console.print(f"{problem}. Triton is started anew, its conversations are lost:\n{log_tail}", markup=False)
        try:
            self._triton.restart()
            self._triton.wait_until_ready(given_up=self._over.is_set)
            self._wait_for_the_engine()
        except (TritonError, OSError, subprocess.SubprocessError) as error:
            self.was_ended = self._over.is_set()
            self.failure = str(error)
            if not self.was_ended:
                console.print(f"Triton did not come up: {error}", markup=False)
            return not self.was_ended  # it is tried again, as long as the count allows
        self.failure = ""
        console.print(f"Triton is back after {time.monotonic() - now_s:.0f} s")
        return True

    def _wait_for_the_engine(self) -> None:
        """Until the bridge has heard of it, or a little longer than that takes."""
        until_s = time.monotonic() + HEARD_OF_S
        while self._engine_problem() and time.monotonic() < until_s and not self._over.wait(WATCH_S):
            pass
