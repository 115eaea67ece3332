"""Attacks of one client: the bridge stays available and fast for all other clients."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import struct
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import numpy as np
import psutil
import pytest
from websockets.asyncio.client import connect as connect_async
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from benchmarks.server import Counters
from client.python_grpc import converse
from client.python_websocket import talk
from config import Settings
from launch.triton_server import http_arguments
from tests.conftest import IDLE_TIMEOUT_S, Served
from tests.sockets import event, health, wait_until_empty
from tests.test_triton import TICK

TICK_BYTES = 10240
MESSAGE = json.dumps({"type": "message", "text": "a large latte please " * 100})


@pytest.fixture
def pcm_bytes(pcm: np.ndarray) -> bytes:
    return pcm[:5120].tobytes()


def reset_connection(client: ClientConnection) -> None:
    """End a connection as a crash does: unread data is dropped on both sides."""
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.socket.shutdown(socket.SHUT_RD)
    client.socket.close()


def a_conversation_works(served: Served, pcm_bytes: bytes) -> None:
    answer = asyncio.run(talk(served.websocket, pcm_bytes * 2))
    assert len(answer.pcm) >= 2 * 15360


@contextlib.contextmanager
def raw(served: Served) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", served.settings.bridge.port)) as client:
        client.settimeout(20)
        yield client


def test_burst_of_controls_leaves_no_backlog(served_turns: Served, pcm_bytes):
    for _ in range(2):
        wait_until_empty(served_turns)
        clients = [connect(served_turns.websocket) for _ in range(served_turns.settings.engine.slots)]
        for client in clients:
            client.send(pcm_bytes)
            for _ in range(2000):
                client.send('{"type": "commit"}')
        for client in clients:
            reset_connection(client)
    wait_until_empty(served_turns)
    a_conversation_works(served_turns, pcm_bytes)


def test_rate_of_text_is_bounded_and_other_conversations_keep_their_ticks(served_turns: Served, pcm_bytes):
    """One who types 2,100 characters fifty times a second is read as fast as bridge.text_per_second allows."""
    wait_until_empty(served_turns)
    rate = served_turns.settings.bridge.text_per_second
    with connect(served_turns.websocket) as attacker, connect(served_turns.websocket) as victim:
        begun = time.monotonic()
        for _ in range(100):
            attacker.send(MESSAGE)
        for _ in range(10):
            victim.send(pcm_bytes)
            while not isinstance(victim.recv(timeout=20), bytes):
                pass
        time.sleep(max(0.0, begun + 3 - time.monotonic()))
        taken = 0
        with contextlib.suppress(TimeoutError):
            while True:
                message = attacker.recv(timeout=0.1)
                taken += isinstance(message, str) and json.loads(message)["type"] == "committed"
        took_s = time.monotonic() - begun
        assert 1 <= taken <= (5 + took_s) * rate / len(MESSAGE) + 1
    wait_until_empty(served_turns)


@pytest.mark.parametrize("length", [21_000, 2_000_000])
def test_length_of_a_system_prompt_is_bounded(served_turns: Served, pcm_bytes, length):
    wait_until_empty(served_turns)
    with connect(served_turns.websocket, max_size=None) as client:
        client.send(json.dumps({"type": "options", "system_prompt": "x" * length}))
        error = event(client, "error")
        assert error["code"] in ("bad_option", "frame_too_large")
        assert str(length)[:4] in error["message"]
        client.send(pcm_bytes)
        while not isinstance(client.recv(timeout=20), bytes):
            pass


def test_client_that_reads_nothing_is_dropped(served: Served, pcm_bytes):
    wait_until_empty(served)
    with raw(served) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(
            b"GET /ws/pcm16 HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        frame = struct.pack("!BBHI", 0x82, 0x80 | 126, TICK_BYTES, 0) + pcm_bytes  # masked with zeros
        begun = time.monotonic()
        client.settimeout(1)
        with contextlib.suppress(TimeoutError):  # the bridge reads no further: what it says is not read either
            for _ in range(1000):
                client.sendall(frame)
        assert health(served)["conversations"] == 1
        deadline = begun + 3 * served.settings.bridge.read_timeout_s + 10
        while health(served)["conversations"]:
            assert time.monotonic() < deadline
            time.sleep(0.2)
    a_conversation_works(served, pcm_bytes)


@pytest.mark.parametrize("path", ["/ws/pcm16", "/v1/realtime"])
def test_endless_text_frame_is_refused_in_one_line(served: Served, path):
    with connect(served.http.replace("http", "ws") + path, max_size=None) as client:
        client.send(json.dumps({"type": "options", "voice": "x" * 16_000_000}))
        while (found := json.loads(client.recv(timeout=20)))["type"] != "error":
            pass
        assert len(json.dumps(found)) < 1000
        assert "got 16000032" in json.dumps(found)


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost.evil.example", "http://["])
def test_page_of_another_origin_is_refused(served: Served, origin):
    for path in ("/ws/pcm16", "/v1/realtime"):
        with pytest.raises(InvalidStatus) as refused:
            connect(served.http.replace("http", "ws") + path, additional_headers={"Origin": origin})
        assert refused.value.response.status_code == 403
    request = urllib.request.Request(f"{served.http}/access", method="POST", headers={"Origin": origin})
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(request)


def test_name_that_resolves_to_this_machine_is_not_the_bridges_origin(served: Served):
    """DNS rebinding: the page's origin and the Host header agree, and neither is this machine's."""
    evil = f"evil.example:{served.settings.bridge.port}"
    request = urllib.request.Request(
        f"{served.http}/access", method="POST", headers={"Origin": f"http://{evil}", "Host": evil}
    )
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(request)
    own = urllib.request.Request(f"{served.http}/access", method="POST", headers={"Origin": served.http})
    with urllib.request.urlopen(own) as response:
        assert response.status == 200


def test_page_loads_nothing_from_other_origins_and_no_other_page_exists(served: Served):
    with urllib.request.urlopen(f"{served.http}/") as response:
        assert "default-src 'none'" in response.headers["Content-Security-Policy"]
        assert response.headers["X-Content-Type-Options"] == "nosniff"
    for path in ("docs", "redoc", "openapi.json"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{served.http}/{path}")


def test_tritons_http_listens_only_if_a_setting_requests_it():
    settings = Settings.load(environ={}).triton
    assert http_arguments(settings) == ["--allow-http=false"]


def test_thousand_abandoned_conversations_leave_nothing(served: Served, pcm):
    """Each begins and is gone without a word, eight at a time for four slots; who is refused comes again."""
    expected, _ = converse(served.triton_grpc, pcm[: 3 * TICK])
    sound = pcm[:TICK].tobytes()

    chance = random.Random(0)

    async def abandon(at_once: asyncio.Semaphore) -> None:
        async with at_once:
            while True:
                with contextlib.suppress(InvalidStatus, ConnectionClosed):  # refused: it is full
                    client = await connect_async(served.websocket)
                    await client.send(sound)
                    if chance.random() < 0.5:
                        await client.recv()
                    client.transport.abort()
                    return
                await asyncio.sleep(0.02)

    async def abandon_all(count: int) -> None:
        at_once = asyncio.Semaphore(8)
        await asyncio.gather(*(abandon(at_once) for _ in range(count)))

    asyncio.run(abandon_all(100))
    before = memory_of(served)
    asyncio.run(abandon_all(900))
    wait_until_empty(served, seconds=30)
    wait_until_empty(served, of="sockets", seconds=30)
    assert memory_of(served) - before < 40_000_000
    assert Counters.read(served.settings).slots_taken == 0
    found, _ = converse(served.triton_grpc, pcm[: 3 * TICK])
    assert np.abs(found.astype(int) - expected).max() <= 1, "a step of PCM16"


def memory_of(served: Served) -> int:
    """Return the bytes of memory of the bridge, Triton and its stages."""
    process = psutil.Process(served.process.pid)
    return sum(each.memory_info().rss for each in (process, *process.children(recursive=True)))


def test_silent_sockets_hold_no_place(served: Served, pcm_bytes):
    wait_until_empty(served)
    silent = [socket.create_connection(("127.0.0.1", served.settings.bridge.port)) for _ in range(300)]
    silent_sockets = [connect(served.websocket) for _ in range(200)]
    try:
        with urllib.request.urlopen(f"{served.http}/readyz") as response:
            assert json.load(response) == {"status": "ready"}
        a_conversation_works(served, pcm_bytes)
        deadline = time.monotonic() + IDLE_TIMEOUT_S + 10
        while health(served)["sockets"]:
            assert time.monotonic() < deadline, "they are told that they are idle, and closed"
            time.sleep(0.2)
        for client in silent:  # without a request: closed after 10 s
            client.settimeout(15)
            assert client.recv(100).startswith(b"HTTP/1.1 408")
    finally:
        for client in silent:
            client.close()
        for one in silent_sockets:
            with contextlib.suppress(ConnectionClosed):
                one.close()


@pytest.mark.parametrize("length", [9_000, 200_000])
def test_query_beyond_all_bounds_is_refused_at_once(served: Served, length):
    with raw(served) as client:
        client.settimeout(5)
        client.sendall(
            b"GET /ws/pcm16?system_prompt=" + b"x" * length + b" HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
            b"Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        assert client.recv(1000).split(b" ")[1] in (b"414", b"400")


def test_long_header_is_refused_at_once(served: Served):
    with pytest.raises(InvalidStatus) as refused:
        connect(served.websocket, additional_headers={"Authorization": "Bearer " + "x" * 9000})
    assert refused.value.response.status_code == 431
