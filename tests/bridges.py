"""Separate bridges before a Triton, for tests that need other settings."""

from __future__ import annotations

import contextlib
import json
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT, Served, free_port, serve_environment, wait_until_answered

KEYS = ("first-key-0123456789", "second-key-0123456789")


@dataclass(frozen=True)
class RunningBridge:
    """A `./sca bridge`."""

    port: int
    process: subprocess.Popen[str]
    log: Path

    @property
    def http(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def websocket(self) -> str:
        return f"ws://127.0.0.1:{self.port}/ws/pcm16"


@contextlib.contextmanager
def bridge(
    served: Served, log: Path, environment: Mapping[str, str] | None = None, **settings: str
) -> Iterator[RunningBridge]:
    """Run a bridge before a server, or before what `environment` names; `settings` are of the section [bridge]."""
    port = free_port()
    environment = serve_environment() | {
        "SCA_TRITON_GRPC_PORT": str(served.settings.triton.grpc_port),
        "SCA_BRIDGE_PORT": str(port),
        **{f"SCA_BRIDGE_{name.upper()}": value for name, value in settings.items()},
        **(environment or {}),
    }
    with log.open("w") as output:
        process = subprocess.Popen(
            [ROOT / "sca", "bridge"], env=environment, stdout=output, stderr=subprocess.STDOUT, text=True
        )
    try:
        yield RunningBridge(port, process, log)
    finally:
        process.kill()
        process.wait()


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def metrics(running: RunningBridge | Served) -> dict[str, float]:
    request = urllib.request.Request(f"{running.http}/metrics", headers=bearer(KEYS[0]))
    with urllib.request.urlopen(request) as response:
        lines = [line.rsplit(" ", 1) for line in response.read().decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in lines}


def lines_about(running: RunningBridge, conversation: str) -> list[dict]:
    lines = [json.loads(line) for line in running.log.read_text().splitlines() if line.startswith("{")]
    return [line for line in lines if line.get("conversation") == conversation]


@contextlib.contextmanager
def locked_bridge(served: Served, folder: Path) -> Iterator[RunningBridge]:
    """Run a bridge that other machines can reach, with two keys and one conversation per client."""
    keys = folder / "keys"
    keys.write_text("# of the shop\n" + "\n".join(KEYS) + "\n")
    settings = {"host": "0.0.0.0", "api_keys_file": str(keys), "conversations_per_client": "1", "log_level": "info"}
    with bridge(served, folder / "log", **settings) as running:
        wait_until_answered(f"{running.http}/readyz", running.process, running.log)
        yield running
        shown = running.log.read_text()
        assert not [key for key in KEYS if key in shown], "no key is in the log"
