"""Frames of `/ws/pcm16`, valid and not, before a real Triton."""

from __future__ import annotations

import json
import urllib.error
import urllib.request

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from client.python_grpc import converse
from tests.conftest import Served
from tests.sockets import end, event, wait_until_empty
from tests.test_triton import TICK


@pytest.mark.parametrize(
    ("frame", "code", "message"),
    [
        (b"", "empty_frame", "expected PCM16 samples, got a binary frame of 0 bytes"),
        (b"abc", "odd_frame", "expected an even number of bytes"),
        (
            bytes(10_000_000),
            "frame_too_large",
            "at most 1048576 bytes (bridge.max_frame_bytes), got 10000000",
        ),
        ("hello", "not_json", "got the text frame 'hello'; send audio in binary frames"),
        ("x" * 500, "not_json", "xxx...'; send audio"),
        (
            '{"type": "sing"}',
            "unknown_control",
            """expected {"type": "options"} or {"type": "commit"} or""",
        ),
        ("[1]", "unknown_control", "got the text frame '[1]'"),
        ('{"type": "commit"}', "no_turns", "commit requires engine.dialect turn, got sca"),
        ("null", "unknown_control", "got the text frame 'null'"),
        ("[" * 100_000, "not_json", "[[[...'; send audio"),
        ("1" * 5000, "not_json", "111...'; send audio"),
        ("x" * 200_000, "frame_too_large", "expected a text frame of at most 150000 characters, got 200000"),
    ],
    ids=[
        "empty",
        "odd",
        "10 MB",
        "words",
        "long words",
        "unknown",
        "list",
        "no turns",
        "null",
        "deep",
        "long number",
        "200 KB",
    ],
)
def test_bad_frame_is_named_and_ignored_and_other_conversations_continue(served: Served, pcm, frame, code, message):
    expected, _ = converse(served.triton_grpc, pcm[: 2 * TICK])
    with connect(served.websocket) as other, connect(served.websocket) as socket:
        other.send(pcm[:TICK].tobytes())
        socket.send(pcm[:TICK].tobytes())
        socket.send(frame)
        error = event(socket, "error")
        assert error["code"] == code
        assert message in error["message"]
        for conversation in (socket, other):
            conversation.send(pcm[TICK : 2 * TICK].tobytes())
        sound, close_code = end(other)
        difference = np.abs(sound[: len(expected)].astype(int) - expected)
        assert difference.max() <= 1, "the other one heard nothing of it; in a batch a rounding may fall the other way"
        assert close_code == 1000
        sound, close_code = end(socket)
        assert close_code == 1000, "this conversation goes on too"
        assert len(sound) >= 7680


def test_message_beyond_all_bounds_closes_its_websocket(served: Served):
    with connect(served.websocket) as socket:
        event(socket, "conversation.opened")
        with pytest.raises(ConnectionClosed) as closed:
            socket.send(bytes(20_000_000))  # the bridge closes the WebSocket during this frame
    assert closed.value.rcvd is None or closed.value.rcvd.code == 1009, "message too big (RFC 6455)"
    wait_until_empty(served)


def test_ping_is_answered_with_the_duration_of_a_tick(served: Served, pcm):
    with connect(served.websocket) as socket:
        event(socket, "conversation.opened")
        socket.send(json.dumps({"type": "ping", "sent": 12.5}))
        assert event(socket, "pong") == {"type": "pong", "sent": 12.5, "tick_ms": None}
        socket.send(pcm[:TICK].tobytes())
        while not isinstance(socket.recv(timeout=20), bytes):
            pass
        socket.send(json.dumps({"type": "ping", "sent": 0}))
        assert 0 < event(socket, "pong")["tick_ms"] < 5000


def test_gaps_that_a_page_reports_are_counted(served: Served):
    def gaps() -> float:
        with urllib.request.urlopen(f"{served.http}/metrics") as response:
            return float(next(line.split()[1] for line in response.read().decode().splitlines()
                              if line.startswith("sca_bridge_gaps_total")))  # fmt: skip

    before = gaps()
    with connect(served.websocket) as socket:
        event(socket, "conversation.opened")
        socket.send(json.dumps({"type": "playback", "gaps": 3}))
        for bad in (-1, "3", None, True, 10**9, float("nan")):
            socket.send(json.dumps({"type": "playback", "gaps": bad}))
            error = event(socket, "error")
            assert error["code"] == "bad_number"
            assert "expected a number from 0 to 1000" in error["message"]
    assert gaps() == before + 3


def test_reset_before_any_audio_is_confirmed(served: Served):
    with connect(served.websocket) as socket:
        socket.send(json.dumps({"type": "reset"}))
        assert event(socket, "reset") == {"type": "reset", "at_ms": 0}


def test_reset_is_confirmed_and_begins_the_conversation_again(served: Served, pcm):
    with connect(served.websocket) as socket:
        socket.send(pcm[: 2 * TICK].tobytes())
        event(socket, "text")
        socket.send(json.dumps({"type": "reset"}))
        socket.send(pcm[:TICK].tobytes())
        assert event(socket, "reset") == {"type": "reset", "at_ms": 0}
        assert end(socket)[1] == 1000
