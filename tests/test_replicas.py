"""Two real servers behind a stock balancer: conversations stay whole, and a full or dead server is its own trouble."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from websockets.sync.client import ClientConnection, connect

from client.python_websocket import talk
from frontend.failover.replayable import HandOver, ReplayableTicks
from frontend.tick import TickIn
from tests.conftest import ROOT, Served, free_port, serve, serve_environment, wait_until_answered
from tests.test_access import RunningBridge, bridge
from tests.test_bridge import end, event, send_unless_closed
from tests.test_outage import BACK_S, is_ready, taken, triton_of, wait_for_readiness
from tests.test_triton import TICK

SLOTS = 2  # of each server


@dataclass
class Balancer:
    """An HAProxy as in deploy/, with ports of its own."""

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
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def tell(self, command: str) -> str:
        """An operator's command, and HAProxy's answer."""
        with socket.socket(socket.AF_UNIX) as admin:
            admin.connect(str(self.folder / "haproxy.sock"))
            admin.sendall(command.encode() + b"\n")
            return admin.recv(65536).decode().strip()

    def wait_until_up(self, name: str) -> None:
        """Until HAProxy's own checks have found a server well."""
        deadline = time.monotonic() + 10
        while not re.search(rf"^tritons,{name},.*,UP,", self.tell("show stat"), re.MULTILINE):
            assert time.monotonic() < deadline
            time.sleep(0.2)


@contextmanager
def balancer(servers: list[Served], folder: Path) -> Iterator[Balancer]:
    """HAProxy as in deploy/, with these servers' ports."""
    running = Balancer(free_port(), folder)
    text = (ROOT / "deploy" / "haproxy.cfg").read_text().replace("127.0.0.1:8101", f"127.0.0.1:{running.port}")
    text = text.replace("/tmp/sca-haproxy.sock", str(folder / "haproxy.sock"))
    for example, server in zip(("127.0.0.1:8001", "127.0.0.1:8011"), servers, strict=True):
        assert example in text
        text = text.replace(example, server.triton_grpc)
    (folder / "haproxy.cfg").write_text(text)
    running.start()
    try:
        yield running
    finally:
        running.kill()


def wait_until_listening(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 10
    while True:
        assert process.poll() is None, log.read_text()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        assert time.monotonic() < deadline
        time.sleep(0.1)


@dataclass(frozen=True)
class Replicas:
    """Two servers, and a bridge that reaches both by the balancer."""

    servers: tuple[Served, Served]
    balancer: Balancer
    bridge: RunningBridge

    @property
    def websocket(self) -> str:
        return self.bridge.websocket


@contextmanager
def two_servers(folder: Path, dialect: str, **settings: str) -> Iterator[Replicas]:
    """Two servers of a dialect behind a balancer; `settings` are the bridge's own."""
    with ExitStack() as stack:
        shared = {"SCA_ENGINE_SLOTS": str(SLOTS), "SCA_ENGINE_DIALECT": dialect}
        served = contextmanager(serve)
        servers = [
            stack.enter_context(served(serve_environment(dialect) | shared, folder / f"log{n}", folder / str(n)))
            for n in range(2)
        ]
        between = stack.enter_context(balancer(servers, folder))
        balanced = {"SCA_TRITON_GRPC_PORT": str(between.port), "SCA_TRITON_REPLICAS": "2", **shared}
        running = stack.enter_context(bridge(servers[0], folder / "bridge.log", balanced, **settings))
        wait_until_answered(f"{running.http}/readyz", running.process, running.log)
        yield Replicas((servers[0], servers[1]), between, running)


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicas]:
    with two_servers(tmp_path_factory.mktemp("replicas"), "sca") as running:
        yield running


def speak(client: ClientConnection, pcm: np.ndarray) -> None:
    """A tick, and the wait for its answer."""
    client.send(pcm[:TICK].tobytes())
    event(client, "text")


def told(client: ClientConnection) -> str:
    """Whether a tick is answered by text or by an error."""
    while True:
        message = client.recv(timeout=20)
        if isinstance(message, str) and (kind := str(json.loads(message)["type"])) in ("text", "error"):
            return kind


def test_conversations_at_once_are_as_alone_and_on_both(replicas: Replicas, pcm):
    said = [pcm[start * TICK : (start + 6) * TICK].tobytes() for start in range(4)]
    alone = [asyncio.run(talk(replicas.servers[0].websocket, sound)).pcm for sound in said]
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(replicas.websocket)) for _ in said]
        for client, sound in zip(clients, said, strict=True):
            client.send(sound[: 2 * TICK])
            event(client, "text")
        assert [taken(server) for server in replicas.servers] == [SLOTS, SLOTS]
        for client, sound in zip(clients, said, strict=True):
            client.send(sound[2 * TICK :])
        heard = [end(client)[0] for client in clients]
    for found, expected in zip(heard, alone, strict=True):
        length = min(len(found), len(expected) // 2)
        assert length >= 6 * 7680
        difference = found[:length].astype(int) - np.frombuffer(expected, np.int16)[:length]
        assert np.abs(difference).max() <= 1, "a step of PCM16"


def test_a_server_that_is_full_is_not_the_last_word(replicas: Replicas, pcm):
    """The balancer knows nothing of slots: who meets the full one is tried on the other."""
    with ExitStack() as stack:
        for _ in range(SLOTS):
            speak(stack.enter_context(connect(replicas.servers[0].websocket)), pcm)
        assert taken(replicas.servers[0]) == SLOTS
        for count in range(1, SLOTS + 1):
            speak(stack.enter_context(connect(replicas.websocket)), pcm)
            assert taken(replicas.servers[1]) == count
        refused = stack.enter_context(connect(replicas.websocket))
        refused.send(pcm[:TICK].tobytes())
        assert event(refused, "error")["code"] == "full"
    with connect(replicas.websocket) as client:
        speak(client, pcm)


def test_a_server_that_is_killed_is_its_conversations_trouble_alone(replicas: Replicas, pcm):
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(replicas.websocket)) for _ in range(2)]
        for client in clients:
            speak(client, pcm)
        assert [taken(server) for server in replicas.servers] == [1, 1]
        os.kill(triton_of(replicas.servers[0]), signal.SIGKILL)
        for client in clients:
            send_unless_closed(client, pcm[:TICK].tobytes())
        kinds = [told(client) for client in clients]
        assert sorted(kinds) == ["error", "text"]
        speak(stack.enter_context(connect(replicas.websocket)), pcm)
    wait_for_readiness(replicas.servers[0], True, BACK_S)  # it is started anew


def test_a_rolling_restart_loses_no_conversation(replicas: Replicas, pcm):
    """As an operator does it: drain, wait until it is empty, restart, let it back in; then the other one."""
    failures: list[Exception] = []
    heard: list[int] = []
    over = threading.Event()

    def keep_talking() -> None:
        while not over.is_set():
            try:
                heard.append(len(asyncio.run(talk(replicas.websocket, pcm[: 4 * TICK].tobytes())).pcm))
            except Exception as error:  # all of them are the test's to show
                failures.append(error)

    crowd = threading.Thread(target=keep_talking)
    replicas.balancer.wait_until_up("first")  # a test before may have killed it
    crowd.start()
    try:
        for name, server, other in zip(("first", "second"), replicas.servers, replicas.servers[::-1], strict=True):
            with connect(replicas.websocket) as patient:  # begun before, and given its time
                speak(patient, pcm)
                assert replicas.balancer.tell(f"set server tritons/{name} state drain") == ""
                for _ in range(6):
                    speak(patient, pcm)
                    time.sleep(0.3)
            deadline = time.monotonic() + 15
            while taken(server):
                assert time.monotonic() < deadline
                time.sleep(0.2)
            count = len(heard)
            os.kill(triton_of(server), signal.SIGTERM)
            wait_for_readiness(server, False, 20)
            wait_for_readiness(server, True, BACK_S)
            assert len(heard) > count, "the other one went on"
            assert taken(other) <= SLOTS
            assert replicas.balancer.tell(f"set server tritons/{name} state ready") == ""
            replicas.balancer.wait_until_up(name)  # before the next one is drained
    finally:
        over.set()
        crowd.join()
    assert not failures
    assert len(heard) > 20
    assert all(length >= 4 * 15360 for length in heard)


def test_a_balancer_that_is_killed_is_told_and_comes_back(replicas: Replicas, pcm):
    with connect(replicas.websocket) as client:
        speak(client, pcm)
        replicas.balancer.kill()
        send_unless_closed(client, pcm[:TICK].tobytes())
        assert event(client, "error")["code"] == "tick_failed"
    assert not is_ready(replicas.bridge)
    replicas.balancer.start()
    wait_for_readiness(replicas.bridge, True, BACK_S)
    with connect(replicas.websocket) as client:
        speak(client, pcm)


def test_a_reader_that_was_left_behind_takes_no_tick():
    """Its server is gone, and its task not cancelled yet, when the next one begins to read."""

    async def ticks() -> AsyncIterator[int]:
        for number in range(3):
            await asyncio.sleep(0.02)
            yield number

    async def check() -> None:
        shared = HandOver(ticks())
        left_behind = asyncio.ensure_future(anext(shared.read(shared.take_over()), "nothing"))
        await asyncio.sleep(0)
        assert [tick async for tick in shared.read(shared.take_over())] == [0, 1, 2]
        assert await left_behind == "nothing"

    asyncio.run(check())


def test_ticks_are_given_again_until_they_are_answered():
    """Also one that was waited for when the first server refused."""

    async def ticks() -> AsyncIterator[TickIn]:
        for number in range(4):
            await asyncio.sleep(0.02)
            yield TickIn(bytes([number]))

    async def check() -> None:
        given = ReplayableTicks(ticks())
        first = given.replay()
        assert [(await anext(first)).pcm[0] for _ in range(2)] == [0, 1]
        waiting = asyncio.ensure_future(anext(first))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        second = given.replay()
        assert [(await anext(second)).pcm[0] for _ in range(3)] == [0, 1, 2]
        given.settle()
        assert [tick.pcm[0] async for tick in second] == [3]
        given.close()

    asyncio.run(check())
