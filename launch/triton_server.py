"""The Triton server as a child process that ends with its parent."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from config import Settings
from config.settings import TritonSettings
from launch.triton_install import TritonInstall

BOUND = Path(__file__).with_name("bound.py")
TRACES_VARIABLE = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
EXIT_TIMEOUT_S = 3  # time that Triton waits at shutdown for open conversations
STOP_TIMEOUT_S = 15
LOG_TAIL = 25  # lines of the log that an error quotes
PROGRESS_TAIL = 4096  # bytes at the end of the log that are searched for progress


class TritonError(RuntimeError):
    """Triton did not start, or ended; the message ends with the last lines of its log."""


class TritonServer:
    """A tritonserver process and its children, started on entry of a `with` block and ended on exit."""

    def __init__(self, repository: Path, runtime: Path, settings: Settings, log: Path, verbose: bool = False) -> None:
        """Prepare a server of the model repository `repository`; the folder `runtime` gets backends and packages."""
        self._settings = settings.triton
        self._threads = settings.engine.cpu_threads
        self._log = log
        self._install = TritonInstall.find()
        self._runtime = self._install.lay_out(runtime)
        # prefix of the names of its shared memory, unique among the servers of this process
        self._shared_memory = f"{_region_prefix()}{os.getpid()}-{settings.triton.grpc_port}-"
        self._command = [
            *(sys.executable, "-S", str(BOUND), str(os.getpid())),
            str(self._install.server),
            f"--model-repository={repository}",
            f"--backend-directory={self._runtime / 'backends'}",
            *http_arguments(settings.triton),
            f"--grpc-address={settings.triton.host}",
            f"--metrics-address={settings.triton.host}",
            f"--grpc-port={settings.triton.grpc_port}",
            f"--metrics-port={settings.triton.metrics_port}",
            "--model-control-mode=none",
            "--strict-readiness=true",
            "--exit-on-error=true",
            f"--exit-timeout-secs={EXIT_TIMEOUT_S}",
            "--disable-auto-complete-config",
            f"--backend-config=python,shm-region-prefix-name={self._shared_memory}",
            f"--log-verbose={int(verbose)}",
            *trace_arguments(settings.bridge.traces_url),
        ]
        # The environment, unlike the command line, is readable only by the same user; the URL may contain a password.
        self._environment = {TRACES_VARIABLE: settings.bridge.traces_url} if settings.bridge.traces_url else {}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> TritonServer:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        remove_orphaned_regions()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command,
                env=self._install.environment(self._threads) | self._environment,
                cwd=self._runtime / "python",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is ours to handle: the bridge closes its conversations first
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def wait_until_ready(
        self, report: Callable[[str], None] = lambda _: None, given_up: Callable[[], bool] = lambda: False
    ) -> None:
        """Wait until every model is loaded; call `report` with the progress of the weights.

        Raises `TritonError` if Triton ends or the time is over, or if `given_up` returns true.
        """
        started_s = time.monotonic()
        reported = ""
        with grpc.InferenceServerClient(
            f"{self._settings.host}:{self._settings.grpc_port}",
            channel_args=[("grpc.enable_http_proxy", 0)],  # a proxy cannot reach 127.0.0.1 of this machine
        ) as client:
            while time.monotonic() - started_s < self._settings.start_timeout_s:
                if not self.is_running():
                    raise TritonError(f"Triton ended while loading:\n{self.log_tail()}")
                if _is_ready(client):
                    return
                if given_up():
                    raise TritonError("Triton was stopped while loading")
                progress = loading_progress(self._log)
                if progress != reported:
                    report(progress)
                    reported = progress
                time.sleep(0.2)
        raise TritonError(
            f"Triton was not ready after {self._settings.start_timeout_s:g} s (triton.start_timeout_s):\n"
            f"{self.log_tail()}"
        )

    def is_running(self) -> bool:
        """Return whether the process runs."""
        return self._process is not None and self._process.poll() is None

    def restart(self) -> None:
        """End the remaining processes of the server, and start it again."""
        self.stop()
        self.__enter__()

    def log_tail(self) -> str:
        """Return the last `LOG_TAIL` lines of the log."""
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join([*lines[-LOG_TAIL:], f"(full log: {self._log})"])

    def log_message(self, beginning: str) -> str | None:
        """Return the first log message that begins with `beginning`, without Triton's prefix; None if there is none."""
        text = self._log.read_text(encoding="utf-8", errors="replace")
        found = re.search(rf'"({re.escape(beginning)}.*)"$', text, re.MULTILINE)
        return found[1] if found else None

    def stop(self) -> None:
        """End the server and the remaining processes of its group."""
        if self._process is None:
            return
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_TIMEOUT_S)
        with contextlib.suppress(ProcessLookupError):  # every process of the group has ended
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None
        for region in Path("/dev/shm").glob(f"{self._shared_memory}*"):  # regions of killed processes
            region.unlink(missing_ok=True)


def remove_orphaned_regions(folder: Path = Path("/dev/shm")) -> None:
    """Remove the shared memory of servers whose `./sca serve` was killed."""
    prefix = _region_prefix()
    for region in folder.glob(f"{prefix}*-*"):
        owner = region.name.removeprefix(prefix).partition("-")[0]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            with contextlib.suppress(OSError):  # region of another user
                region.unlink(missing_ok=True)


def _region_prefix() -> str:
    """Return a prefix for this PID namespace: containers that share /dev/shm may have equal process ids."""
    return f"sca-{os.stat('/proc/self/ns/pid').st_ino}-"


def loading_progress(log: Path) -> str:
    """Return the share of weights loaded, as `45%`, from transformers' progress bar in Triton's log; "" before it."""
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - PROGRESS_TAIL))
        found = re.findall(rb"Loading weights:\s+(\d+%)", file.read())
    return found[-1].decode() if found else ""


def _is_ready(client: grpc.InferenceServerClient) -> bool:
    try:
        return bool(client.is_server_ready(client_timeout=2))
    except InferenceServerException:
        return False


def http_arguments(settings: TritonSettings) -> list[str]:
    """Return the arguments of Triton's HTTP endpoint; closed by default, because it answers every web page."""
    if not settings.http_port:
        return ["--allow-http=false"]
    return [f"--http-address={settings.host}", f"--http-port={settings.http_port}"]


def trace_arguments(url: str) -> list[str]:
    """Return the arguments for traces, if `url` is a collector, only of requests that carry a span of the bridge.

    Triton reads the URL from the environment variable `TRACES_VARIABLE`.
    """
    if not url:
        return []
    values = ("mode=opentelemetry", "level=TIMESTAMPS", "rate=0")
    return [f"--trace-config={value}" for value in values]
