"""./sca serve: start and shutdown of Triton and the bridge, and the restart of a Triton that has failed."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import functools
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from commands.bridge import BridgeServer, address, bridge_server, run_until_stopped
from commands.console import ENTRY, Steps, UserError, add_build_argument, console, load_settings, steps
from commands.ports import needed_ports
from config import Settings
from launch.triton_install import TritonMissingError
from launch.triton_server import TritonError, TritonServer

PORT_STEP = 10  # distance between the ports of two Tritons
WATCH_S = 0.5  # interval of the checks that Triton runs
MAX_PROBE_S = 20.0  # time in which the bridge's health probe finds that a restarted engine answers
RESTARTS_WINDOW_S = 600  # sliding window for triton.max_restarts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_build_argument(parser)
    parser.add_argument("--verbose", action="store_true", help="let Triton log every request")
    several = parser.add_mutually_exclusive_group()
    several.add_argument("--gpus", metavar="all|N,N,...", help="one Triton on each of these GPUs, behind one bridge")
    several.add_argument(
        "--servers", type=int, default=1, metavar="N", help="number of Tritons on the CPU (default: 1)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Serve until Ctrl-C or SIGTERM; restart a Triton that fails, up to `triton.max_restarts` times."""
    check_build_path(arguments.build)
    settings = load_settings()
    each = settings_of_each(settings, devices_of(arguments, settings))
    others = ", ".join(filter(None, [*(one.triton.urls[0] for one in each[1:]), settings.triton.others]))
    settings = each[0].with_values(triton={"others": others})
    check_ports(each)
    bridge = bridge_server(settings)
    lock = lock_build(arguments.build)
    build: Path = arguments.build.resolve()
    try:
        with contextlib.ExitStack() as stack:
            tritons: list[TritonServer] = []
            repositories: dict[str, Path] = {}  # device map to repository
            for number, one in enumerate(each):
                folder, device = build / f"server-{number}" if number else build, one.qwen.device_map
                if device not in repositories:
                    repositories[device] = export(folder, device)
                log = folder / "triton.log"
                triton = TritonServer(repositories[device], folder / "triton", one, log, arguments.verbose)
                tritons.append(stack.enter_context(triton))
            with steps() as shown:
                for triton, one in zip(tritons, each, strict=True):
                    name = f"Triton on {one.qwen.device_map}" if len(each) > 1 else "Triton"
                    shown.begin(name)
                    triton.wait_until_ready(functools.partial(_show_progress, shown, name))
            console.print(f"  [dim]{tritons[0].log_message('the engine takes')}[/dim]", highlight=False)
            return _serve_bridge(bridge, settings, tritons)
    except (TritonError, TritonMissingError) as error:
        raise UserError(str(error)) from error
    finally:
        lock.close()


def devices_of(arguments: argparse.Namespace, settings: Settings) -> list[str]:
    """Return the device map of each Triton; raise `UserError` for impossible `--servers` or `--gpus`."""
    if arguments.servers < 1:
        raise UserError(f"--servers: expected a number from 1, got {arguments.servers}")
    if arguments.servers > 1:
        return ["cpu"] * arguments.servers
    if not arguments.gpus:
        return [settings.qwen.device_map]
    count = gpu_count()
    parts = range(count) if arguments.gpus == "all" else [part.strip() for part in arguments.gpus.split(",")]
    numbers = [int(part) for part in parts if str(part).isdigit() and int(part) < count]
    if not numbers or len(set(numbers)) < len(parts):
        known = f"all, or some of 0 to {count - 1}" if count else "no --gpus: torch finds no GPU here"
        raise UserError(f"--gpus: expected {known}, got {arguments.gpus!r}")
    return [f"cuda:{number}" for number in numbers]


def gpu_count() -> int:
    """Return the number of GPUs. A subprocess imports torch, so that the process of the bridge does not."""
    command = [sys.executable, "-I", "-c", "import torch; print(torch.cuda.device_count())"]
    return int(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def settings_of_each(settings: Settings, devices: Sequence[str]) -> list[Settings]:
    """Return the settings of each Triton: its device, and ports `PORT_STEP` above those of the previous Triton."""
    triton = settings.triton
    ports = {name: getattr(triton, name) for name in ("http_port", "grpc_port", "metrics_port")}
    return [
        settings.with_values(
            qwen={"device_map": device},
            triton={name: port + PORT_STEP * number for name, port in ports.items() if port},
        )
        for number, device in enumerate(devices)
    ]


def check_build_path(build: Path) -> None:
    """Raise `UserError` for a path that Triton cannot use: it starts the Python backend by an unquoted shell line."""
    path = str(build.resolve())
    if bad := sorted(set(re.findall(r"[^\w@%+=:,./-]", path))):
        shown = " ".join(map(repr, bad))
        raise UserError(
            f"--build: expected a path that Triton's shell line can contain, got {path!r} with {shown}; choose another "
            "folder: --build FOLDER"
        )


def lock_build(build: Path) -> IO[str]:
    """Lock the folder `build` until the returned file is closed; raise `UserError` if another process has the lock."""
    build.mkdir(parents=True, exist_ok=True)
    lock = (build / "serve.lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(f"another ./sca serve runs on {build}; choose another folder: --build FOLDER") from error
    return lock


def _show_progress(shown: Steps, name: str, progress: str) -> None:
    shown.update(f"{name}: weights {progress}")


def export(build: Path, device: str) -> Path:
    """Return the repository that `./sca export` builds. A subprocess imports torch, so that the bridge's does not."""
    command = [*ENTRY, "export", "--build", str(build)]
    environment = {**os.environ, "SCA_QWEN_DEVICE_MAP": device}
    made = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if made.returncode != 0:
        raise SystemExit(made.returncode)  # ./sca export has printed the reason
    return Path(made.stdout.strip())


def check_ports(each: Sequence[Settings]) -> None:
    """Raise `UserError` with the setting of the first port that cannot be listened on."""
    for port in dict.fromkeys(port for settings in each for port in needed_ports(settings)):
        if problem := port.problem():
            raise UserError(
                f"port {port.number} on {port.host} {problem}; choose another {port.setting}, "
                f"for example {port.variable}={port.number + 100}"
            )


def _serve_bridge(bridge: BridgeServer, settings: Settings, tritons: Sequence[TritonServer]) -> int:
    """Run the bridge in this thread, and keep the Tritons running; return the exit status.

    Raises `UserError` when a Triton cannot be restarted: whatever supervises this process decides what to do.
    """
    stopping = threading.Event()
    the_bridge = bridge.bridge
    supervisors = [
        Supervisor(
            triton,
            stopping,
            functools.partial(the_bridge.engine.problem_of, number),
            functools.partial(the_bridge.engine.has_answered_since, number),
            settings.triton.max_restarts,
        )
        for number, triton in enumerate(tritons)
    ]

    def watch(supervisor: Supervisor) -> None:
        while not stopping.wait(WATCH_S):
            try:
                is_running = supervisor.keep_running()
            except Exception as error:  # without its watcher, a Triton that ends would not be restarted
                supervisor.failure, is_running = f"Triton cannot be watched: {error!r}", False
            if not is_running:
                bridge.should_exit = True
                return

    def greet() -> None:
        while not bridge.started and not stopping.wait(WATCH_S):
            pass
        if bridge.started:
            console.print(f"\n  Open [bold]{address(settings)}[/bold] and speak.  Ctrl-C stops it.\n")

    threads = [threading.Thread(target=watch, args=(supervisor,), daemon=True) for supervisor in supervisors]
    threads.append(threading.Thread(target=greet, daemon=True))
    for thread in threads:
        thread.start()
    try:
        run_until_stopped(bridge)
    finally:
        stopping.set()
        for thread in threads:
            thread.join()
        console.print("stopping Triton ...")
    for supervisor in supervisors:
        if supervisor.failure and not supervisor.was_stopped:
            raise UserError(supervisor.failure)
    return 0


class Supervisor:
    """Watcher that restarts a Triton that has ended or whose engine is dead; the bridge is not ready meanwhile."""

    def __init__(
        self,
        triton: TritonServer,
        stopping: threading.Event,
        engine_problem: Callable[[], str | None] = lambda: None,
        has_answered_since: Callable[[float], bool] = lambda _: True,
        max_restarts: int = 3,
    ):
        """Watch `triton` until `stopping` is set.

        `engine_problem` returns why the engine counts as dead, else None; `has_answered_since` whether the engine has
        answered since a time of the monotonic clock. After `max_restarts` in `RESTARTS_WINDOW_S` the watcher gives up.
        """
        self._triton, self._stopping, self._engine_problem = triton, stopping, engine_problem
        self._has_answered_since = has_answered_since
        self._max_restarts = max_restarts
        self._restarts: list[float] = []
        self.failure = ""  # reason of the latest failed restart
        self.was_stopped = False  # the restart failed because serve is stopping

    def keep_running(self) -> bool:
        """Restart Triton if it has failed; return False if it has failed too often or serve is stopping."""
        problem = self._engine_problem() if self._triton.is_running() else "Triton ended"
        if not problem:
            return True
        now_s = time.monotonic()
        self._restarts = [at_s for at_s in self._restarts if at_s > now_s - RESTARTS_WINDOW_S]
        log_tail = self._triton.log_tail()
        if len(self._restarts) >= self._max_restarts:
            minutes = RESTARTS_WINDOW_S // 60
            self.failure = f"Triton has failed {self._max_restarts + 1} times in {minutes} minutes:\n{log_tail}"
            return False
        self._restarts.append(now_s)
        console.print(f"{problem}. Restarting Triton; its conversations are lost:\n{log_tail}", markup=False)
        try:
            self._triton.restart()
            restarted_s = time.monotonic()
            self._triton.wait_until_ready(given_up=self._stopping.is_set)
            self._wait_for_the_engine(restarted_s)
        except (TritonError, OSError, subprocess.SubprocessError) as error:
            self.was_stopped = self._stopping.is_set()
            self.failure = str(error)
            if not self.was_stopped:
                console.print(f"Triton did not start: {error}", markup=False)
            return not self.was_stopped  # the next call restarts it again, up to `max_restarts`
        self.failure = ""
        console.print(f"Triton is back after {time.monotonic() - now_s:.0f} s")
        return True

    def _wait_for_the_engine(self, restarted_s: float) -> None:
        """Wait until the bridge's probe has found the new engine, at most `MAX_PROBE_S`: older results are stale."""
        until_s = time.monotonic() + MAX_PROBE_S
        while not self._has_answered_since(restarted_s) and time.monotonic() < until_s:
            if self._stopping.wait(WATCH_S):
                return
