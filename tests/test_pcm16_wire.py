"""Conversations over /ws/pcm16 through a whole bridge, before a fake Triton that returns the user's audio."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator
from socket import SHUT_RDWR

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from tests.triton_fake import OUTPUT_SAMPLES, FakeTriton, fake_bridge

TICK = np.arange(1, 5121, dtype=np.int16)
ANSWER = np.resize(TICK, OUTPUT_SAMPLES)
SLOTS = 2


@pytest.fixture(scope="module")
def bridge() -> Iterator[tuple[str, FakeTriton]]:
    with fake_bridge(SLOTS, resume_s=20) as running:
        yield running


@pytest.fixture
def url(bridge: tuple[str, FakeTriton]) -> str:
    return f"ws://{bridge[0]}/ws/pcm16"


def read(socket: ClientConnection) -> tuple[list[dict], np.ndarray, int]:
    """Return the events, the audio and the close code of a conversation."""
    events, audio = [], b""
    try:
        while True:
            message = socket.recv(timeout=20)
            if isinstance(message, bytes):
                audio += message
            else:
                events.append(json.loads(message))
    except ConnectionClosed as closed:
        return events, np.frombuffer(audio, np.int16), closed.rcvd.code if closed.rcvd else 1006


def send_end(socket: ClientConnection) -> None:
    socket.send(json.dumps({"type": "end"}))


def conversations(host: str) -> int:
    with urllib.request.urlopen(f"http://{host}/healthz") as response:
        return int(json.load(response)["conversations"])


def wait_until_empty(host: str) -> None:
    deadline = time.monotonic() + 20
    while conversations(host):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("frame_bytes", [2000, 10_240, 33_334])
def test_each_tick_of_audio_is_answered_however_it_is_cut(url: str, frame_bytes: int):
    with connect(url) as socket:
        data = np.tile(TICK, 3).tobytes()
        for start in range(0, len(data), frame_bytes):
            socket.send(data[start : start + frame_bytes])
        send_end(socket)
        events, audio, code = read(socket)
    assert events[0]["type"] == "conversation.opened"
    assert np.array_equal(audio[: 3 * OUTPUT_SAMPLES], np.tile(ANSWER, 3))
    assert code == 1000


def test_options_and_controls_reach_the_engine_and_every_conversation_ends(url: str, bridge: tuple[str, FakeTriton]):
    ends = bridge[1].ends
    with connect(f"{url}?seed=3") as socket:
        socket.send(json.dumps({"type": "options", "voice": "ethan"}))
        socket.send(json.dumps({"type": "listen"}))
        socket.send(TICK.tobytes())
        socket.send(json.dumps({"type": "message", "text": "hello"}))
        send_end(socket)
        events, _, _ = read(socket)
    found = [json.loads(event["text"]) for event in events if event["type"] == "text"]
    assert found[:2] == [{"seed": "3", "voice": "ethan", "listen": True}, {"message": "hello"}]
    wait_until_empty(bridge[0])
    assert bridge[1].ends > ends


@pytest.mark.parametrize(
    ("frame", "code"),
    [(b"", "empty_frame"), (b"abc", "odd_frame"), ("hello", "not_json"), ('{"type": "sing"}', "unknown_control")],
)
def test_bad_frame_is_an_error_and_the_conversation_continues(url: str, frame: bytes | str, code: str):
    with connect(url) as socket:
        socket.send(frame)
        socket.send(TICK.tobytes())
        send_end(socket)
        events, audio, close_code = read(socket)
    assert [event["code"] for event in events if event["type"] == "error"] == [code]
    assert np.array_equal(audio[:OUTPUT_SAMPLES], ANSWER)
    assert close_code == 1000


def test_unknown_option_closes_with_its_name(url: str):
    with connect(f"{url}?vioce=ethan") as socket:
        events, _, code = read(socket)
    assert (events[-1]["code"], code) == ("unknown_option", 1008)


def test_conversation_beyond_the_capacity_is_refused_before_the_upgrade(url: str, bridge: tuple[str, FakeTriton]):
    wait_until_empty(bridge[0])
    clients = [connect(url) for _ in range(SLOTS)]
    for client in clients:
        client.send(TICK.tobytes())
        while not isinstance(client.recv(timeout=20), bytes):
            pass
    with pytest.raises(InvalidStatus) as refused:
        connect(url)
    assert json.loads(refused.value.response.body)["error"]["code"] == "full"
    for client in clients:
        client.close()
    wait_until_empty(bridge[0])


def test_conversation_is_resumed_at_the_right_sample(url: str):
    first = connect(f"{url}?resumable=true")
    opened = json.loads(first.recv(timeout=20))
    first.send(TICK.tobytes())
    assert np.array_equal(np.frombuffer(first.recv(timeout=20), np.int16), ANSWER)
    first.socket.shutdown(SHUT_RDWR)
    with connect(f"{url}?resume={opened['resume_token']}&received=2") as socket:
        assert json.loads(socket.recv(timeout=20)) == {"type": "conversation.resumed", "received": 1}
        socket.send((TICK[::-1]).tobytes())
        send_end(socket)
        _, audio, code = read(socket)
    assert np.array_equal(audio[:OUTPUT_SAMPLES], np.resize(TICK[::-1], OUTPUT_SAMPLES))
    assert code == 1000
