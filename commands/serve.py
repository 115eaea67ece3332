"""./sca serve: Triton and the bridge, up together and down together."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import functools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from commands.bridge import BridgeServer, address, bridge_server, run_until_stopped
from commands.console import Steps, UserError, add_build_argument, console, load_settings, steps
from commands.ports import wanted_ports
from config import Settings
from launch.triton_install import TritonMissingError
from launch.triton_server import TritonError, TritonServer

PORT_STEP = 10  # between the ports of two Tritons
WATCH_S = 0.5  # how often is looked whether Triton still runs
HEARD_OF_S = 20.0  # in which the bridge hears that the engine answers again
MAX_RESTARTS = 3  # of Triton, in so many seconds:
RESTARTS_WINDOW_S = 600


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    add_build_argument(parser)
    parser.add_argument("--verbose", action="store_true", help="let Triton log every request")
    several = parser.add_mutually_exclusive_group()
    several.add_argument("--gpus", metavar="all|N,N,...", help="a Triton for each of these GPUs, behind one bridge")
    several.add_argument("--servers", type=int, default=1, metavar="N", help="so many Tritons on the CPU (default: 1)")


def run(arguments: argparse.Namespace) -> int:
    """Serves until Ctrl-C or SIGTERM; a Triton that ends is started anew, a few times."""
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
            repositories: dict[str, Path] = {}  # by device
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
                    triton.wait_until_ready(functools.partial(_tell_progress, shown, name))
            console.print(f"  [dim]{tritons[0].log_message('the engine takes')}[/dim]", highlight=False)
            return _serve_bridge(bridge, settings, tritons)
    except (TritonError, TritonMissingError) as error:
        raise UserError(str(error)) from error
    finally:
        lock.close()


def devices_of(arguments: argparse.Namespace, settings: Settings) -> list[str]:
    """The device map of each Triton. Raises `UserError`."""
    if arguments.servers < 1:
        raise UserError(f"--servers is {arguments.servers}, expected a number from 1")
    if arguments.servers > 1:
        return ["cpu"] * arguments.servers
    if not arguments.gpus:
        return [settings.qwen.device_map]
    count = gpu_count()
    wanted = range(count) if arguments.gpus == "all" else [part.strip() for part in arguments.gpus.split(",")]
    numbers = [int(number) for number in wanted if str(number).isdigit() and int(number) < count]
    if not numbers or len(set(numbers)) < len(wanted):
        known = f"all, or some of 0 to {count - 1}" if count else "no such option: torch sees no GPU here"
        raise UserError(f"--gpus is {arguments.gpus!r}, expected {known}")
    return [f"cuda:{number}" for number in numbers]


def gpu_count() -> int:
    """GPUs that torch sees, asked in a process of its own: torch has no place in the bridge's."""
    command = [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"]
    return int(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def settings_of_each(settings: Settings, devices: Sequence[str]) -> list[Settings]:
    """Of each Triton: its device, and ports PORT_STEP above those of the one before."""
    triton = settings.triton
    ports = {name: getattr(triton, name) for name in ("http_port", "grpc_port", "metrics_port")}
    return [
        settings.with_values(
            qwen={"device_map": device},
            triton={name: port + PORT_STEP * number for name, port in ports.items() if port},
        )
        for number, device in enumerate(devices)
    ]


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


def _tell_progress(shown: Steps, name: str, progress: str) -> None:
    shown.update(f"{name}: weights {progress}")


def export(build: Path, device: str) -> Path:
    """The repository that `./sca export` makes, in a process of its own: torch has no place in the bridge's."""
    command = [sys.executable, "-m", "commands", "export", "--build", str(build)]
    environment = {**os.environ, "SCA_QWEN_DEVICE_MAP": device}
    made = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if made.returncode != 0:
        raise SystemExit(made.returncode)  # it has said why
    return Path(made.stdout.strip())


def check_ports(each: Sequence[Settings]) -> None:
    """Raises `UserError` naming the setting whose port cannot be had."""
    for wanted in dict.fromkeys(wanted for settings in each for wanted in wanted_ports(settings)):
        problem = wanted.problem()
        if problem:
            raise UserError(
                f"port {wanted.port} on {wanted.host} {problem}; choose another {wanted.setting}, "
                f"for example {wanted.variable}={wanted.port + 100}"
            )


def _serve_bridge(bridge: BridgeServer, settings: Settings, tritons: Sequence[TritonServer]) -> int:
    """Runs the bridge in this thread, and keeps the Tritons running; returns the exit status. Raises `UserError`.

    It ends when one of them does not come up again: a supervisor of the whole may know what to do.
    """
    over = threading.Event()
    the_bridge = bridge.bridge
    supervisors = [
        Supervisor(
            triton,
            over,
            functools.partial(the_bridge.engine.problem_of, number),
            functools.partial(the_bridge.engine.has_answered_since, number),
        )
        for number, triton in enumerate(tritons)
    ]

    def watch(supervisor: Supervisor) -> None:
        while not over.wait(WATCH_S):
            try:
                goes_on = supervisor.keep_running()
            except Exception as error:  # a watcher that is dead would watch nothing
                supervisor.failure, goes_on = f"Triton cannot be watched: {error!r}", False
            if not goes_on:
                bridge.should_exit = True
                return

    def greet() -> None:
        while not bridge.started and not over.wait(WATCH_S):
            pass
        if bridge.started:
            console.print(f"\n  Open [bold]{address(settings)}[/bold] and speak.  Ctrl-C ends it.\n")

    threads = [threading.Thread(target=watch, args=(supervisor,), daemon=True) for supervisor in supervisors]
    threads.append(threading.Thread(target=greet, daemon=True))
    for thread in threads:
        thread.start()
    try:
        run_until_stopped(bridge)
    finally:
        over.set()
        for thread in threads:
            thread.join()
        console.print("ending Triton ...")
    for supervisor in supervisors:
        if supervisor.failure and not supervisor.was_ended:
            raise UserError(supervisor.failure)
    return 0


class Supervisor:
    """Starts Triton anew when it has ended, or its engine is dead; meanwhile the bridge is not ready and says so."""

    def __init__(
        self,
        triton: TritonServer,
        over: threading.Event,
        engine_problem: Callable[[], str | None] = lambda: None,
        has_answered_since: Callable[[float], bool] = lambda _: True,
    ):
        """`over` is set when all is to end; `engine_problem` says why the engine counts as dead.

        `has_answered_since`: whether it has answered since a time on the monotonic clock.
        """
        self._triton, self._over, self._engine_problem = triton, over, engine_problem
        self._has_answered_since = has_answered_since
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
        if len(self._restarts) == MAX_RESTARTS:
            minutes = RESTARTS_WINDOW_S // 60
            self.failure = f"Triton has failed {MAX_RESTARTS + 1} times in {minutes} minutes:\n{log_tail}"
            return False
        self._restarts.append(now_s)
        console.print(f"{problem}. Triton is started anew, its conversations are lost:\n{log_tail}", markup=False)
        try:
            self._triton.restart()
            restarted_s = time.monotonic()
            self._triton.wait_until_ready(given_up=self._over.is_set)
            self._wait_for_the_engine(restarted_s)
        except (TritonError, OSError, subprocess.SubprocessError) as error:
            self.was_ended = self._over.is_set()
            self.failure = str(error)
            if not self.was_ended:
                console.print(f"Triton did not come up: {error}", markup=False)
            return not self.was_ended  # it is tried again, as long as the count allows
        self.failure = ""
        console.print(f"Triton is back after {time.monotonic() - now_s:.0f} s")
        return True

    def _wait_for_the_engine(self, restarted_s: float) -> None:
        """Until the bridge has heard of it, or a little longer than that takes: what it knew is of the one before."""
        until_s = time.monotonic() + HEARD_OF_S
        while not self._has_answered_since(restarted_s) and time.monotonic() < until_s:
            if self._over.wait(WATCH_S):
                return
