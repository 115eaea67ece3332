"""Triton or one of its stages dies under open conversations: they are told, new ones are refused until it is back."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from client.python_websocket import talk
from launch.triton_server import remove_orphaned_regions
from tests.conftest import Served, serve, serve_environment
from tests.test_bridge import event

TOLD_S = 2.0
NOTICED_S = 20.0  # three seconds without an answer, two questions of five seconds at most, one between
BACK_S = 120
ENDED_S = 20


@pytest.fixture(scope="module")
def served_alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server that may be broken."""
    folder = tmp_path_factory.mktemp("outage")
    yield from serve(serve_environment(), folder / "log", folder / "build")


def triton_of(served: Served) -> int:
    """The process id of its tritonserver."""
    children = subprocess.run(
        ["pgrep", "--parent", str(served.process.pid), "tritonserver"], capture_output=True, text=True, check=True
    )
    return int(children.stdout)


def close_code(client: ClientConnection) -> int | None:
    try:
        while True:
            client.recv(timeout=5)
    except ConnectionClosed as closed:
        return closed.rcvd.code if closed.rcvd else None


def test_clients_are_told_at_once_and_new_ones_work_when_it_is_back(served_alone: Served, pcm):
    sound = pcm[:5120].tobytes()
    realtime_address = served_alone.websocket.replace("/ws/pcm16", "/v1/realtime")
    with connect(served_alone.websocket) as plain, connect(realtime_address) as realtime:
        plain.send(sound)
        event(plain, "text")
        audio = base64.b64encode(bytes(48_000)).decode()
        realtime.send(json.dumps({"type": "input_audio_buffer.append", "audio": audio}))
        time.sleep(1)
        os.kill(triton_of(served_alone), signal.SIGKILL)
        killed_s = time.monotonic()
        told = event(plain, "error")
        assert told["code"] == "tick_failed"
        assert "Triton" in told["message"]
        assert event(realtime, "error")["error"]["type"] == "server_error"
        assert time.monotonic() - killed_s < TOLD_S
        assert close_code(plain) == 1011
        assert close_code(realtime) == 1011
    with pytest.raises(urllib.error.HTTPError, match="503"):
        urllib.request.urlopen(f"{served_alone.http}/readyz")
    wait_for_readiness(served_alone, True, BACK_S)
    expect_a_conversation(served_alone, sound)


@pytest.mark.parametrize(
    ("stage", "how"),
    [("thinker_talker", signal.SIGKILL), ("code2wav", signal.SIGSTOP)],
    ids=["killed", "stopped"],
)
def test_a_stage_that_is_dead_is_noticed_and_comes_back(served_alone: Served, pcm, stage: str, how: signal.Signals):
    """Triton goes on and calls itself ready."""
    sound = pcm[:5120].tobytes()
    with connect(served_alone.websocket) as client:
        client.send(sound)
        event(client, "text")
        os.kill(stub_of(served_alone, stage), how)
        client.send(sound)
        wait_for_readiness(served_alone, False, NOTICED_S)
        wait_for_readiness(served_alone, False, NOTICED_S, "/healthz/engine")  # readiness may fall a little before
        assert event(client, "error")["code"] == "tick_failed"
    wait_for_readiness(served_alone, True, BACK_S)
    expect_a_conversation(served_alone, sound)


def stub_of(served: Served, stage: str) -> int:
    """The process id of a stage's Python process."""
    found = subprocess.run(
        ["pgrep", "--parent", str(triton_of(served)), "--full", f"stub.*/{stage}/"], capture_output=True, text=True
    )
    return int(found.stdout.split()[0])


def wait_for_readiness(served: Served, ready: bool, seconds: float, path: str = "/readyz") -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(f"{served.http}{path}")
            is_ready = True
        except urllib.error.HTTPError:
            is_ready = False
        if is_ready == ready:
            return
        assert time.monotonic() < deadline
        time.sleep(0.2)


def expect_a_conversation(served: Served, sound: bytes) -> None:
    answer = asyncio.run(talk(served.websocket, sound * 2))
    assert len(answer.pcm) >= 2 * 15360


def test_a_serve_that_is_killed_leaves_nothing_behind(served_alone: Served):
    """Triton and its stages end; what is left of their memory goes when anybody serves again."""
    triton, owner = triton_of(served_alone), served_alone.process.pid
    stages = subprocess.run(["pgrep", "--parent", str(triton)], capture_output=True, text=True, check=True)
    served_alone.process.kill()
    served_alone.process.wait(10)
    deadline = time.monotonic() + ENDED_S
    while any(Path(f"/proc/{pid}").exists() for pid in (str(triton), *stages.stdout.split())):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    remove_orphaned_regions()
    assert not list(Path("/dev/shm").glob(f"sca-*-{owner}-*"))
