"""Two servers of the dialect `turn` that tests may break, a balancer and two bridges in front of both.

All of these start once per session. Before each test, whatever the test before it has broken is restored.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import psutil
import pytest
from websockets.sync.client import connect

from config import Settings
from engine.checkpoint import Checkpoint
from export.code2wav import DELAY_SAMPLES
from tests.bridges import RunningBridge, bridge
from tests.conftest import ROOT, Served, free_port, serve_environment, start_serving, wait_until_answered
from tests.lockstep import LockstepClient
from tests.probes import (
    BACK_S,
    EMPTY_S,
    ENDED_S,
    descendants,
    taken,
    triton_of,
    wait_for_readiness,
    wait_until,
    wait_until_listening,
)
from tests.turn_oracle import TurnOracle
from tests.turns import TICK

SLOTS = 4  # slots of each server
ANSWER_TOKENS, ANSWER_FRAMES = 24, 60
LIMITS = f"answer_tokens={ANSWER_TOKENS}&answer_frames={ANSWER_FRAMES}"
IDLE_S = 15  # engine.idle_timeout_s: longer than any pause of a test on a busy machine
MOVE_WITHIN_S = 40  # timeout of a conversation's move to the other server
MAX_RESTARTS = 1000  # restarts of one server: more than the tests need
CLOCK = """
import sys
import time
now = time.time
def jumped():
    is_grpc = sys._getframe(1).f_globals["__name__"].startswith("grpc")  # the core of gRPC reads the true time
    return now() + (0 if is_grpc else float(open({jump!r}).read()))
time.time = jumped
"""  # sitecustomize.py, which Python runs at the start of every process of the server


@dataclass
class Server(Served):
    """A `./sca serve` that a test may break; the number of seconds in the file `jump` is added to its time of day."""

    environment: dict[str, str]
    folder: Path

    @classmethod
    def start(cls, folder: Path) -> Server:
        """Start a server whose files lie in `folder`; it is not ready yet."""
        (folder / "hook").mkdir(parents=True)
        (folder / "hook" / "sitecustomize.py").write_text(CLOCK.format(jump=str(folder / "jump")))
        environment = serve_environment("turn") | {
            "PYTHONPATH": str(folder / "hook"),
            "SCA_ENGINE_SLOTS": str(SLOTS),
            "SCA_ENGINE_IDLE_TIMEOUT_S": str(IDLE_S),
            "SCA_TRITON_MAX_RESTARTS": str(MAX_RESTARTS),
            "SCA_BRIDGE_MAX_LAG_MS": "0",
            "SCA_BRIDGE_DRAIN_S": "1",
        }
        settings = Settings.load(environ={k: v for k, v in environment.items() if k.startswith("SCA_")})
        build = folder / "build"
        (folder / "jump").write_text("0")
        process = start_serving(environment, folder / "log", build)
        return cls(settings, build / "repository", process, environment, folder)

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def jump_to(self, seconds: int) -> None:
        """Shift the time of day of all processes of the server."""
        (self.folder / "next").write_text(str(seconds))
        (self.folder / "next").replace(self.folder / "jump")

    def restore(self) -> None:
        """Wait until the server is ready and holds no conversation; start it again if it has ended."""
        self.jump_to(0)
        if self.process.poll() is not None:
            self.process = start_serving(self.environment, self.log, self.folder / "build")
        wait_until_answered(f"{self.http}/readyz", self.process, self.log)
        wait_until(lambda: taken(self) == 0, EMPTY_S)  # reported with a tick; a health probe sends one every 3 s

    def stop(self) -> None:
        """End the server and every process that it has started."""
        processes = descendants(self.process.pid)
        self.process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(ENDED_S)
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


@dataclass
class Balancer:
    """HAProxy process with the configuration of deploy/ and its own port."""

    port: int
    folder: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.folder / "haproxy.log").open("w") as log:
            self.process = subprocess.Popen(
                ["haproxy", "-db", "-f", self.folder / "haproxy.cfg"], stdout=log, stderr=log
            )
        wait_until_listening(self.port, self.process, self.folder / "haproxy.log")

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def send(self, command: str) -> str:
        """Send an operator's command and return HAProxy's answer."""
        with socket.socket(socket.AF_UNIX) as admin:
            admin.connect(str(self.folder / "haproxy.sock"))
            admin.sendall(command.encode() + b"\n")
            return admin.recv(65536).decode().strip()

    def wait_until_up(self, name: str) -> None:
        """Wait until HAProxy's own checks have found a server healthy."""
        wait_until(lambda: bool(re.search(rf"^tritons,{name},.*,UP,", self.send("show stat"), re.MULTILINE)), BACK_S)

    def restore(self) -> None:
        """Start the balancer again if it has ended, and enable both servers."""
        if self.process is None or self.process.poll() is not None:
            self.start()
        for name in ("first", "second"):
            assert self.send(f"set server tritons/{name} state ready") == ""
            self.wait_until_up(name)


@dataclass
class Pair:
    """Two servers; the balancer and the bridges in front of the servers start when a test first uses them."""

    servers: tuple[Server, Server]
    folder: Path
    clients: list[LockstepClient] = field(default_factory=list)
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @cached_property
    def balancer(self) -> Balancer:
        running = Balancer(free_port(), self.folder)
        text = (ROOT / "deploy" / "haproxy.cfg").read_text().replace("127.0.0.1:8101", f"127.0.0.1:{running.port}")
        text = text.replace("/tmp/sca-haproxy.sock", str(self.folder / "haproxy.sock"))
        for example, server in zip(("127.0.0.1:8001", "127.0.0.1:8011"), self.servers, strict=True):
            assert example in text
            text = text.replace(example, server.triton_grpc)
        (self.folder / "haproxy.cfg").write_text(text)
        self.stack.callback(running.kill)
        running.start()
        return running

    @cached_property
    def bridge(self) -> RunningBridge:
        """A bridge to both servers, whose conversations end with their server."""
        return self._bridge("bridge")

    @cached_property
    def moving_bridge(self) -> RunningBridge:
        """A bridge to both servers, whose conversations move when their server has ended."""
        return self._bridge("moving_bridge", move_within_s=str(MOVE_WITHIN_S))

    def _bridge(self, name: str, **settings: str) -> RunningBridge:
        balanced = {
            "SCA_ENGINE_DIALECT": "turn",
            "SCA_ENGINE_SLOTS": str(SLOTS),
            "SCA_ENGINE_IDLE_TIMEOUT_S": str(IDLE_S),
            "SCA_TRITON_GRPC_PORT": str(self.balancer.port),
            "SCA_TRITON_REPLICAS": "2",
        }
        log = self.folder / f"{name}.log"
        running = self.stack.enter_context(bridge(self.servers[0], log, balanced, max_lag_ms="0", **settings))
        wait_until_answered(f"{running.http}/readyz", running.process, running.log)
        return running

    def open_client(self, address: str, options: str) -> LockstepClient:
        """Begin a conversation, which is closed after the test."""
        client = LockstepClient(connect(f"{address}?{options}&{LIMITS}"))
        self.clients.append(client)
        assert json.loads(client.socket.recv())["dialect"] == "turn"
        return client

    def wait_until_taken(self, *counts: int) -> None:
        """Wait until the servers hold these numbers of conversations; a health probe holds a slot for a moment."""
        wait_until(lambda: [taken(server) for server in self.servers] == list(counts), EMPTY_S)

    def kill_the_only_one_taken(self) -> Server:
        """Kill the Triton of the server that holds the conversation, and return the server."""
        wait_until(lambda: sorted(taken(server) for server in self.servers) == [0, 1], EMPTY_S)
        (server,) = (server for server in self.servers if taken(server))
        os.kill(triton_of(server), signal.SIGKILL)
        return server

    def restore(self) -> None:
        """Restart the servers, the balancer and the bridges that a test has broken."""
        for server in self.servers:
            server.restore()
        if "balancer" in vars(self):
            self.balancer.restore()
        for name in {"bridge", "moving_bridge"} & set(vars(self)):
            wait_for_readiness(getattr(self, name), True, BACK_S)

    def release(self) -> None:
        """Close the conversations of the test."""
        for client in self.clients:
            client.socket.close()
        self.clients.clear()


@pytest.fixture(scope="session")
def running_pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("pair")
    with contextlib.ExitStack() as stack:
        servers = [Server.start(folder / name) for name in ("first", "second")]
        for server in servers:
            stack.callback(server.stop)
        pair = Pair((servers[0], servers[1]), folder)
        stack.enter_context(pair.stack)
        yield pair


@pytest.fixture
def pair(running_pair: Pair) -> Iterator[Pair]:
    """Yield both servers, ready and without conversations."""
    running_pair.restore()
    yield running_pair
    running_pair.release()


@pytest.fixture(scope="session")
def expect_answer(checkpoint: Checkpoint, pcm: np.ndarray) -> Callable[[Server], None]:
    """Return a check: a server's next conversation emits what `generate()` returns, and leaves all slots free."""
    spoken = pcm[: 6 * TICK - 1000]
    oracle = TurnOracle(checkpoint, "ethan")
    oracle.add_user_turn(np.pad(spoken, (0, 1000)))  # the bridge pads the tick of a commit with silence
    expected = oracle.answer(ANSWER_TOKENS, ANSWER_FRAMES)

    def check(server: Server) -> None:
        client = LockstepClient(connect(f"{server.websocket}?voice=ethan&detection=manual&{LIMITS}"))
        client.send_audio(spoken[: 5 * TICK])
        client.socket.send(spoken[5 * TICK :].tobytes())
        client.send_event("commit")
        client.receive_tick()
        if not any(event["type"] == "answer_done" for event in client.events):
            client.wait_for("answer_done")
        client.send_audio(np.zeros(TICK, np.int16))
        (done,) = (event for event in client.events if event["type"] == "answer_done")
        assert done["text"] == checkpoint.tokenizer.decode(expected.tokens, skip_special_tokens=True)
        expect_sound(np.concatenate(client.sounds), expected.waveform.numpy())
        client.socket.close()
        wait_until(lambda: taken(server) == 0, EMPTY_S)

    return check


def expect_sound(sound: np.ndarray, waveform: np.ndarray) -> None:
    """Check that an answer's waveform is in the emitted sound, after silence."""
    first = int(np.flatnonzero(sound)[0]) // 7680 * 7680 + DELAY_SAMPLES
    wave = (waveform * 32767).round()
    assert len(wave) > 7680
    found = sound[first : first + len(wave)]
    assert np.abs(found.astype(float) - wave[: len(found)]).max() <= 1, "one step of PCM16"
