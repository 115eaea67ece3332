"""Options of a conversation, in the query and in a frame."""

from __future__ import annotations

import asyncio
import json

import pytest
from websockets.sync.client import connect

from client.python_websocket import talk
from tests.conftest import Served
from tests.sockets import end, event, rest
from tests.test_triton import TICK


def test_bad_value_in_the_query_closes_with_its_reason(served: Served, pcm):
    with connect(served.websocket + "?voice=bob") as socket:
        socket.send(pcm[:TICK].tobytes())
        error = event(socket, "error")
        assert error["code"] == "bad_option"
        assert "voice: expected one of aiden, chelsie, ethan, got 'bob'" in error["message"]
        assert rest(socket)[1] == 1008


@pytest.mark.parametrize("name", ["vioce", "priority", "sequence_id", "triton_x"])
def test_unknown_option_is_refused_by_name(served: Served, name):
    with connect(f"{served.websocket}?{name}=1") as socket:
        error = event(socket, "error")
        assert error["code"] == "unknown_option"
        assert error["message"].startswith(f"unknown option {name!r}, expected one of dialect, voice")
        assert rest(socket)[1] == 1008


def test_options_are_read_from_the_query(served: Served, pcm):
    def heard(query: str) -> bytes:
        return bytes(asyncio.run(talk(served.websocket + query, pcm[: 2 * TICK].tobytes())).pcm)

    assert heard("?voice=ethan") != heard("?voice=chelsie")
    drawn = [heard(f"?temperature=0.9&seed={seed}") for seed in (5, 5, 6)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_options_are_read_from_a_frame(served: Served, pcm):
    """A long prompt does not fit into a URL."""
    prompt = "Be kind. " * 50

    def heard(*frames: str, query: str = "") -> bytes:
        with connect(served.websocket + query) as socket:
            for frame in frames:
                socket.send(frame)
            socket.send(pcm[: 2 * TICK].tobytes())
            return end(socket)[0].tobytes()

    chosen = heard(json.dumps({"type": "options", "voice": "chelsie", "system_prompt": prompt}))
    assert chosen == heard(json.dumps({"type": "options", "system_prompt": prompt}), query="?voice=chelsie")
    assert chosen != heard(query="?voice=chelsie")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vioce": "x"}, "unknown option 'vioce'"),
        ({"voice": ["x"]}, "voice: expected text or a number, got ['x']"),
        ({"voice": "bob"}, "voice: expected one of aiden, chelsie, ethan, got 'bob'"),
        ({"top_k": -1}, "top_k: expected a whole number from 0, got -1"),
        ({"top_k": str(2**64)}, f"top_k: expected a whole number from 0, got {2**64}"),
        ({"seed": str(2**63)}, f"seed: expected a whole number from 0 to {2**63 - 1}, got {2**63}"),
        ({"temperature": "hot"}, "temperature: expected a number, got 'hot'"),
        ({"dialect": "turn"}, "dialect: expected 'sca', got 'turn'"),
    ],
)
def test_bad_option_in_a_frame_is_named_and_the_conversation_continues(served: Served, pcm, options, message):
    with connect(served.websocket) as socket:
        socket.send(json.dumps({"type": "options", **options}))
        error = event(socket, "error")
        assert error["code"] in ("bad_option", "unknown_option")
        assert message in error["message"]
        socket.send(pcm[:TICK].tobytes())
        assert end(socket)[1] == 1000


def test_options_after_the_first_audio_are_refused(served: Served, pcm):
    with connect(served.websocket) as socket:
        socket.send(pcm[:TICK].tobytes())
        socket.send(json.dumps({"type": "options", "voice": "ethan"}))
        assert event(socket, "error")["code"] == "too_late"
        assert end(socket)[1] == 1000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 2**70}, f"seed: expected a number of at most 64 bits, got {2**70}"),
        ({"system_prompt": "one\0two"}, "system_prompt: expected text without a NUL character"),
        ({"system_prompt": "\ud800"}, "system_prompt: expected Unicode, got half a character"),
    ],
)
def test_option_that_triton_would_cut_off_is_refused_by_name(served: Served, pcm, options, message):
    """Its conversation goes on with its other options."""
    with connect(served.websocket) as socket:
        event(socket, "conversation.opened")
        socket.send(json.dumps({"type": "options", **options}))
        error = event(socket, "error")
        assert (error["code"], message in error["message"]) == ("bad_option", True)
        socket.send(pcm[:TICK].tobytes())
        assert end(socket)[1] == 1000


@pytest.mark.parametrize("path", ["/ws/pcm16?system_prompt=" + "la%20" * 900, "/v1/realtime"])
def test_system_prompt_of_too_many_tokens_is_the_clients_mistake(served_turns: Served, pcm, path: str):
    """Only the engine can count tokens: the error follows the first audio."""
    with connect(served_turns.http.replace("http", "ws") + path) as socket:
        if "realtime" in path:
            socket.send(json.dumps({"type": "session.update", "session": {"instructions": "la " * 900}}))
            socket.send(json.dumps({"type": "response.create"}))
        else:
            socket.send(pcm[:5120].tobytes())
        error = event(socket, "error")
        found = error.get("error", error)
        assert "expected at most 1638 tokens (engine.prompt_positions), got " in found["message"]
        if "realtime" in path:
            assert (found["code"], found["param"]) == ("string_above_max_length", "session.instructions")
        assert rest(socket)[1] == 1008
