"""Triton or one of its stages dies under open conversations: they are told, new ones are refused until it is back."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from benchmarks.server import Counters
from client.python_websocket import talk
from engine.checkpoint import Checkpoint
from launch.triton_server import remove_orphaned_regions
from tests.conftest import IDLE_TIMEOUT_S, Served, serve, serve_environment, wait_until_answered
from tests.oracle import ScaOracle, one_shot_waveform
from tests.sound import official_stream
from tests.test_access import RunningBridge, bridge
from tests.test_bridge import event, send_unless_closed

TICKS = 6  # of the conversation that is held against transformers
TOLD_S = 2.0
NOTICED_S = 20.0  # three seconds without an answer, two questions of five seconds at most, one between
BACK_S = 120
ENDED_S = 20
POLITE_END_S = 12  # after the drain; Triton waits three seconds for sequences that nobody closed


CLOCK = """
import sys
import time
now = time.time
def jumped():
    is_grpc = sys._getframe(1).f_globals["__name__"].startswith("grpc")  # its core would still see the true time
    return now() + (0 if is_grpc else float(open({jump!r}).read()))
time.time = jumped
"""  # Python's own hook for a start, in every process of the server


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outage")


@pytest.fixture(scope="module")
def served_alone(folder: Path) -> Iterator[Served]:
    """A server that may be broken; `jump` in its folder is added to the time of day."""
    (folder / "hook").mkdir()
    jump_to(folder, 0)
    (folder / "hook" / "sitecustomize.py").write_text(CLOCK.format(jump=str(folder / "jump")))
    environment = serve_environment() | {"PYTHONPATH": str(folder / "hook")}
    yield from serve(environment, folder / "log", folder / "build")


@pytest.fixture(scope="module")
def expect_a_conversation(served_alone: Served, checkpoint: Checkpoint, extractor, pcm) -> Callable[[], None]:
    """A check that the next conversation says what transformers says, and leaves no slot taken."""
    oracle = ScaOracle(checkpoint.model, checkpoint.tokenizer, "ethan")
    codes = [oracle.tick(official)[1] for official in official_stream(extractor, pcm)[:TICKS]]
    expected = (one_shot_waveform(checkpoint.model.code2wav, torch.cat(codes, dim=1)) * 32767).round().numpy()
    expected = expected[: (TICKS - 1) * 7680]

    def check() -> None:
        answer = asyncio.run(talk(served_alone.websocket, pcm[: TICKS * 5120].tobytes()))
        heard = np.frombuffer(answer.pcm, np.int16)[: len(expected)]
        assert np.abs(heard - expected).max() <= 1, "one step of PCM16"
        deadline = time.monotonic() + IDLE_TIMEOUT_S + 5
        while taken(served_alone):  # told with the next tick of anybody
            assert time.monotonic() < deadline
            time.sleep(0.2)

    return check


def jump_to(folder: Path, seconds: int) -> None:
    (folder / "next").write_text(str(seconds))
    (folder / "next").replace(folder / "jump")


def triton_of(served: Served) -> int:
    """The process id of its tritonserver."""
    children = subprocess.run(
        ["pgrep", "--parent", str(served.process.pid), "tritonserver"], capture_output=True, text=True, check=True
    )
    return int(children.stdout)


def taken(served: Served) -> int:
    """Conversations that a server holds."""
    return Counters.read(served.settings).slots_taken


def close_code(client: ClientConnection) -> int | None:
    try:
        while True:
            client.recv(timeout=5)
    except ConnectionClosed as closed:
        return closed.rcvd.code if closed.rcvd else None


def test_clients_are_told_at_once_and_new_ones_work_when_it_is_back(served_alone: Served, pcm, expect_a_conversation):
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
    expect_a_conversation()


@pytest.mark.parametrize(
    ("stage", "how"),
    [("thinker_talker", signal.SIGKILL), ("code2wav", signal.SIGSTOP)],
    ids=["killed", "stopped"],
)
def test_a_stage_that_is_dead_is_noticed_and_comes_back(
    served_alone: Served, pcm, expect_a_conversation, stage: str, how: signal.Signals
):
    """Triton goes on and calls itself ready."""
    sound = pcm[:5120].tobytes()
    with connect(served_alone.websocket) as client:
        client.send(sound)
        event(client, "text")
        os.kill(stub_of(served_alone, stage), how)
        send_unless_closed(client, sound)
        wait_for_readiness(served_alone, False, NOTICED_S)
        wait_for_readiness(served_alone, False, NOTICED_S, "/healthz/engine")  # readiness may fall a little before
        assert event(client, "error")["code"] == "tick_failed"
    wait_for_readiness(served_alone, True, BACK_S)
    expect_a_conversation()


def stub_of(served: Served, stage: str) -> int:
    """The process id of a stage's Python process."""
    found = subprocess.run(
        ["pgrep", "--parent", str(triton_of(served)), "--full", f"stub.*/{stage}/"], capture_output=True, text=True
    )
    return int(found.stdout.split()[0])


def wait_for_readiness(served: Served | RunningBridge, ready: bool, seconds: float, path: str = "/readyz") -> None:
    deadline = time.monotonic() + seconds
    while is_ready(served, path) != ready:
        assert time.monotonic() < deadline
        time.sleep(0.2)


def is_ready(served: Served | RunningBridge, path: str = "/readyz") -> bool:
    """What a probe is told now."""
    try:
        with urllib.request.urlopen(f"{served.http}{path}"):
            return True
    except urllib.error.HTTPError:
        return False


def test_ticks_that_take_ten_times_too_long_are_late_and_not_lost(served_alone: Served, pcm, expect_a_conversation):
    """The engine's process runs a tenth of the time; its conversations wait, and say what they would have said."""
    said = pcm[: 16 * 5120].tobytes()
    expected = asyncio.run(talk(served_alone.websocket, said)).pcm
    stub = stub_of(served_alone, "thinker_talker")

    async def both_while_it_crawls() -> list[bytes]:
        talks = [asyncio.create_task(talk(served_alone.websocket, said, realtime=True)) for _ in range(2)]
        await asyncio.sleep(1.5)
        for _ in range(8):  # never as long as Triton waits for a sign of life
            os.kill(stub, signal.SIGSTOP)
            await asyncio.sleep(0.45)
            os.kill(stub, signal.SIGCONT)
            await asyncio.sleep(0.05)
        return [bytes((await each).pcm) for each in talks]

    for found in asyncio.run(both_while_it_crawls()):
        assert len(found) >= 16 * 15360
        length = min(len(found), len(expected))
        difference = np.frombuffer(found[:length], np.int16).astype(int) - np.frombuffer(expected[:length], np.int16)
        assert np.abs(difference).max() <= 1, "a step of PCM16"
    wait_for_readiness(served_alone, True, BACK_S)
    expect_a_conversation()


@pytest.mark.parametrize("jump_s", [86_400, -86_400], ids=["a day forward", "a day back"])
def test_a_clock_that_jumps_is_not_noticed(served_alone: Served, folder: Path, pcm, jump_s, expect_a_conversation):
    sound = pcm[:5120].tobytes()
    with connect(served_alone.websocket) as client:
        client.send(sound)
        event(client, "text")
        jump_to(folder, jump_s)
        try:
            for _ in range(4):
                client.send(sound)
                event(client, "text")
            wait_for_readiness(served_alone, True, 5)
            ask = urllib.request.Request(f"{served_alone.http}/v1/realtime/client_secrets", data=b"{}", method="POST")
            with urllib.request.urlopen(ask) as answer:
                told = json.loads(answer.read())
            assert abs(told["expires_at"] - time.time() - jump_s) < 1000, "it has jumped"
        finally:
            jump_to(folder, 0)
        client.send(sound)
        event(client, "text")
    expect_a_conversation()


def test_a_bridge_that_is_killed_costs_its_own_conversations(
    served_alone: Served, tmp_path: Path, pcm, expect_a_conversation
):
    """Their slots are free after engine.idle_timeout_s; the conversations of another bridge go on."""
    sound = pcm[:5120].tobytes()
    with connect(served_alone.websocket) as other:
        other.send(sound)
        event(other, "text")
        with bridge(served_alone, tmp_path / "log") as killed:
            wait_until_answered(f"{killed.http}/readyz", killed.process, killed.log)
            with connect(killed.websocket) as first, connect(killed.websocket) as second:
                for client in (first, second):
                    client.send(sound)
                    event(client, "text")
                until_s = time.monotonic() + 2
                while taken(served_alone) != 3:  # a bridge's own question holds one for a tick
                    assert time.monotonic() < until_s
                    time.sleep(0.05)
                killed.process.kill()
                for client in (first, second):
                    assert close_code(client) is None, "cut off"
        deadline = time.monotonic() + IDLE_TIMEOUT_S + 5
        while taken(served_alone) > 1:
            assert time.monotonic() < deadline
            other.send(sound)
            event(other, "text")
            time.sleep(0.3)
    expect_a_conversation()


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


def test_a_polite_end_under_load_is_quick_and_leaves_nothing(served_alone: Served, folder: Path, pcm):
    environment = serve_environment() | {"SCA_BRIDGE_DRAIN_S": "1"}
    with contextlib.contextmanager(serve)(environment, folder / "log of another", folder / "build") as served:
        owner = served.process.pid

        async def speak() -> str:
            try:
                await talk(served.websocket, pcm.tobytes() * 20, realtime=True)
            except RuntimeError as error:
                return str(error)
            return "it was never told"

        async def end_while_they_speak() -> list[str]:
            talks = [asyncio.create_task(speak()) for _ in range(4)]
            await asyncio.sleep(2)
            served.process.send_signal(signal.SIGTERM)
            return await asyncio.gather(*talks)

        begun_s = time.monotonic()
        for told in asyncio.run(end_while_they_speak()):
            assert told == "the server ends; 1 s were given (bridge.drain_s)"
        assert served.process.wait(POLITE_END_S) == 0
        assert time.monotonic() - begun_s < 2 + 1 + POLITE_END_S
    assert "Traceback" not in (folder / "log of another").read_text()
    assert not list(Path("/dev/shm").glob(f"sca-*-{owner}-*"))
    left = subprocess.run(["pgrep", "--full", str(folder / "build")], capture_output=True, text=True)
    assert not left.stdout
