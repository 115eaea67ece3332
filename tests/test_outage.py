"""Failures under open conversations, of a server, a stage, a clock or a bridge: clients get errors, others go on."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from client.python_websocket import talk
from tests.bridges import bridge
from tests.conftest import wait_until_answered
from tests.pair import IDLE_S, LIMITS, Pair, Server
from tests.probes import (
    BACK_S,
    EMPTY_S,
    answer_kind,
    speak,
    stub_of,
    taken,
    triton_of,
    wait_for_readiness,
    wait_until,
)
from tests.sockets import event, send_unless_closed
from tests.turns import TICK

NOTICED_S = 60  # timeout of the health probe's verdict: two probes of up to five seconds, on a busy machine
TIMED_OUT = "bridge.response_timeout_s"  # setting that the error of a tick without a response names


def close_code(client: ClientConnection) -> int | None:
    try:
        while True:
            client.recv(timeout=20)
    except ConnectionClosed as closed:
        return closed.rcvd.code if closed.rcvd else None


def test_killed_triton_fails_only_its_conversations_and_restarts(pair: Pair, pcm, expect_answer):
    """Clients of the server's bridge and of a bridge behind the balancer; no client waits for a response's timeout."""
    server, other = pair.servers
    balanced_address = pair.bridge.websocket
    with ExitStack() as stack:
        plain = stack.enter_context(connect(server.websocket))
        realtime = stack.enter_context(connect(server.websocket.replace("/ws/pcm16", "/v1/realtime")))
        balanced = [stack.enter_context(connect(balanced_address)) for _ in range(2)]
        speak(plain, pcm)
        audio = base64.b64encode(bytes(48_000)).decode()
        realtime.send(json.dumps({"type": "input_audio_buffer.append", "audio": audio}))
        for client in balanced:
            speak(client, pcm)
        pair.wait_until_taken(3, 1)
        os.kill(triton_of(server), signal.SIGKILL)

        found = event(plain, "error")
        assert found["code"] == "tick_failed"
        assert "Triton" in found["message"]
        assert TIMED_OUT not in found["message"]
        assert event(realtime, "error")["error"]["type"] == "server_error"
        assert close_code(plain) == close_code(realtime) == 1011
        with pytest.raises(urllib.error.HTTPError, match="503"):
            urllib.request.urlopen(f"{server.http}/readyz")
        for client in balanced:
            send_unless_closed(client, pcm[:TICK].tobytes())
        assert sorted(answer_kind(client) for client in balanced) == ["error", "sound"]
        speak(stack.enter_context(connect(balanced_address)), pcm)
        assert taken(other) >= 1
    wait_for_readiness(server, True, BACK_S)
    wait_until(lambda: "Triton is back after" in server.log.read_text(), BACK_S)
    log = server.log.read_text()
    assert "Triton ended" in log
    assert "its conversations are lost" in log
    expect_answer(server)


@pytest.mark.parametrize(
    ("stage", "how"),
    [("thinker_talker", signal.SIGKILL), ("code2wav", signal.SIGSTOP)],
    ids=["killed", "stopped"],
)
def test_dead_stage_is_noticed_and_comes_back(
    pair: Pair, pcm, expect_answer: Callable[[Server], None], stage: str, how: signal.Signals
):
    """Triton keeps running and reports that it is ready."""
    server = pair.servers[1]
    with connect(server.websocket) as client:
        speak(client, pcm)
        os.kill(stub_of(server, stage), how)
        send_unless_closed(client, pcm[:TICK].tobytes())
        wait_for_readiness(server, False, NOTICED_S)
        wait_for_readiness(server, False, NOTICED_S, "/healthz/engine")  # falls a little later than readiness
        assert event(client, "error")["code"] == "tick_failed"
    wait_for_readiness(server, True, BACK_S)
    expect_answer(server)


def test_slow_ticks_are_late_and_not_lost(pair: Pair, questions, expect_answer: Callable[[Server], None]):
    """The engine's process runs a tenth of the time; its conversations wait, and emit what they emit at full speed."""
    server = pair.servers[0]
    spoken = questions[0][: 8 * TICK].tobytes()
    address = f"{server.websocket}?{LIMITS}"
    expected = asyncio.run(talk(address, spoken)).pcm
    assert any(expected)
    stub = stub_of(server, "thinker_talker")

    async def both_while_the_engine_is_slow() -> list[bytes]:
        talks = [asyncio.create_task(talk(address, spoken, realtime=True)) for _ in range(2)]
        while taken(server) < 2:
            await asyncio.sleep(0.05)
        for _ in range(10):  # each stop is shorter than Triton's timeout for a sign of life
            os.kill(stub, signal.SIGSTOP)
            await asyncio.sleep(0.45)
            os.kill(stub, signal.SIGCONT)
            await asyncio.sleep(0.05)
        return [bytes((await each).pcm) for each in talks]

    for found in asyncio.run(both_while_the_engine_is_slow()):
        length = min(len(found), len(expected))
        assert any(found[:length])
        difference = np.frombuffer(found[:length], np.int16).astype(int) - np.frombuffer(expected[:length], np.int16)
        assert np.abs(difference).max() <= 1, "one step of PCM16"
    wait_for_readiness(server, True, BACK_S)
    expect_answer(server)


@pytest.mark.parametrize("jump_s", [86_400, -86_400], ids=["a day forward", "a day back"])
def test_jump_of_the_clock_is_not_noticed(pair: Pair, pcm, jump_s, expect_answer: Callable[[Server], None]):
    server = pair.servers[0]
    with connect(server.websocket) as client:
        speak(client, pcm)
        server.jump_to(jump_s)
        try:
            for _ in range(4):
                speak(client, pcm)
            wait_for_readiness(server, True, NOTICED_S)
            request = urllib.request.Request(f"{server.http}/v1/realtime/client_secrets", data=b"{}", method="POST")
            with urllib.request.urlopen(request) as answer:
                secret = json.loads(answer.read())
            assert abs(secret["expires_at"] - time.time() - jump_s) < 1000, "the clock has jumped"
        finally:
            server.jump_to(0)
        speak(client, pcm)
    expect_answer(server)


def test_killed_bridge_costs_its_own_conversations_only(
    pair: Pair, tmp_path: Path, pcm, expect_answer: Callable[[Server], None]
):
    """Their slots are free after engine.idle_timeout_s; the conversations of another bridge go on."""
    server = pair.servers[0]
    with connect(server.websocket) as other:
        speak(other, pcm)
        with bridge(server, tmp_path / "log", {"SCA_ENGINE_DIALECT": "turn"}) as killed:
            wait_until_answered(f"{killed.http}/readyz", killed.process, killed.log)
            with connect(killed.websocket) as first, connect(killed.websocket) as second:
                for client in (first, second):
                    speak(client, pcm)
                wait_until(lambda: speak(other, pcm) or taken(server) == 3, EMPTY_S)
                killed.process.kill()
                for client in (first, second):
                    assert close_code(client) is None, "no close frame"
        wait_until(lambda: speak(other, pcm) or taken(server) <= 1, IDLE_S + EMPTY_S)
    expect_answer(server)
