"""The bridge against Triton, and what it does with bad input; other conversations go on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import urllib.error
import urllib.request
from socket import SHUT_RDWR
from typing import Protocol

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from client.python_grpc import converse
from client.python_websocket import talk
from frontend.tick import TickIn, new_sequence_id
from frontend.triton import TritonLink
from tests.conftest import IDLE_TIMEOUT_S, Served
from tests.sound import is_same_sound
from tests.test_triton import TICK


class Reachable(Protocol):
    """A bridge."""

    @property
    def http(self) -> str: ...


def health(served: Reachable) -> dict:
    with urllib.request.urlopen(f"{served.http}/healthz") as response:
        return json.load(response)


def wait_until_empty(served: Reachable, of: str = "conversations", seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while health(served)[of]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def event(socket: ClientConnection, kind: str) -> dict:
    """The next event of a kind; sound and text before it are passed over, an error in its place fails the test."""
    while True:
        message = socket.recv(timeout=20)
        if isinstance(message, str):
            found = json.loads(message)
            if found["type"] == kind:
                return found
            assert found["type"] != "error", found


def send_unless_closed(socket: ClientConnection, data: bytes) -> None:
    """For a client whose server was just killed: it may have been told, and the socket closed, before it sends."""
    with contextlib.suppress(ConnectionClosed):
        socket.send(data)


def rest(socket: ClientConnection, events: list[dict] | None = None) -> tuple[bytes, int]:
    """All sound until the bridge closes, and the close code; `events` gets the events."""
    sound = b""
    try:
        while True:
            message = socket.recv(timeout=20)
            if isinstance(message, bytes):
                sound += message
            elif events is not None:
                events.append(json.loads(message))
    except ConnectionClosed as closed:
        return sound, closed.rcvd.code if closed.rcvd else 1006


def end(socket: ClientConnection, events: list[dict] | None = None) -> tuple[np.ndarray, int]:
    socket.send(json.dumps({"type": "end"}))
    sound, code = rest(socket, events)
    return np.frombuffer(sound, np.int16), code


@pytest.mark.parametrize("frame_bytes", [2, 640, 10240, 33333 * 2, 10**6])
def test_the_bridge_equals_triton_however_the_client_cuts(served: Served, pcm, frame_bytes):
    samples = pcm[: 4 * TICK + 1000] if frame_bytes > 2 else pcm[:TICK]
    expected, text = converse(served.triton_grpc, samples)

    async def say() -> None:
        from websockets.asyncio.client import connect as connect_async

        found, words = bytearray(), ""
        async with connect_async(served.websocket) as socket:
            data = samples.tobytes()
            for start in range(0, len(data), frame_bytes):
                await socket.send(data[start : start + frame_bytes])
            await socket.send(json.dumps({"type": "end"}))
            async for message in socket:
                if isinstance(message, bytes):
                    found += message
                elif (said := json.loads(message))["type"] == "text":
                    words += said["text"]
        sound = np.frombuffer(found, np.int16)
        assert is_same_sound(sound[: len(expected)], expected)
        assert words.startswith(text)

    asyncio.run(say())


def test_the_first_event_tells_id_and_formats(served: Served):
    with connect(served.websocket) as first, connect(served.websocket) as second:
        opened = json.loads(first.recv())
        assert opened["type"] == "conversation.opened"
        assert opened["tick_ms"] == 320
        assert opened["input"] == {
            "encoding": "pcm_s16le", "channels": 1, "sample_rate": 16000, "tick_bytes": 10240,
        }  # fmt: skip
        assert opened["output"] == {
            "encoding": "pcm_s16le", "channels": 1, "sample_rate": 24000, "tick_bytes": 15360,
        }  # fmt: skip
        assert 0 < int(opened["id"]) < 2**63
        assert opened["id"] != json.loads(second.recv())["id"]


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
def test_a_bad_frame_is_named_left_out_and_disturbs_nobody(served: Served, pcm, frame, code, message):
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


def test_a_message_beyond_all_bounds_is_cut_off(served: Served):
    with connect(served.websocket) as socket:
        event(socket, "conversation.opened")
        with pytest.raises(ConnectionClosed) as closed:
            socket.send(bytes(20_000_000))  # it is closed while this is being sent
    assert closed.value.rcvd is None or closed.value.rcvd.code == 1009, "message too big (RFC 6455)"
    wait_until_empty(served)


def test_a_client_that_vanishes_in_mid_tick_frees_its_place_and_its_slot(served: Served, pcm):
    slots = served.settings.engine.slots
    for _ in range(2):  # twice as many as there are slots, faster than any idle timeout
        gone = [connect(served.websocket) for _ in range(slots)]
        for socket in gone:
            socket.send(pcm[: TICK + 1234].tobytes())
            event(socket, "text")
            socket.socket.shutdown(SHUT_RDWR)  # no close frame, no goodbye
        wait_until_empty(served)
    answer = asyncio.run(talk(served.websocket, pcm[:TICK].tobytes()))
    assert len(answer.pcm) >= 15360


def test_one_conversation_too_many_is_refused_before_the_upgrade(served: Served, pcm):
    wait_until_empty(served)
    guests = [connect(served.websocket) for _ in range(served.settings.engine.slots)]
    message = "all 4 slots hold a conversation (engine.slots), try again later"
    try:
        late = connect(served.websocket)  # before all are taken: a place is taken by the first sound
        for guest in guests:
            guest.send(pcm[:TICK].tobytes())
            event(guest, "text")
        with pytest.raises(InvalidStatus) as refused:
            connect(served.websocket)
        response = refused.value.response
        assert (response.status_code, response.headers["Retry-After"]) == (503, "5")
        assert json.loads(response.body)["error"] | {"param": 0} == {
            "type": "server_error", "code": "full", "message": message, "param": 0,
        }  # fmt: skip
        with pytest.raises(urllib.error.HTTPError) as not_ready:
            urllib.request.urlopen(f"{served.http}/readyz")
        assert json.load(not_ready.value) == {"status": "not ready", "reason": message}
        late.send(pcm[:TICK].tobytes())
        error = event(late, "error")
        assert (error["code"], error["message"]) == ("full", message)
        assert rest(late)[1] == 1013
    finally:
        for guest in guests:
            guest.close()
    wait_until_empty(served)


def test_a_bad_value_in_the_query_closes_with_its_reason(served: Served, pcm):
    with connect(served.websocket + "?voice=bob") as socket:
        socket.send(pcm[:TICK].tobytes())
        error = event(socket, "error")
        assert error["code"] == "bad_option"
        assert "voice: expected one of aiden, chelsie, ethan, got 'bob'" in error["message"]
        assert rest(socket)[1] == 1008


@pytest.mark.parametrize("name", ["vioce", "priority", "sequence_id", "triton_x"])
def test_an_unknown_option_is_refused_by_name(served: Served, name):
    with connect(f"{served.websocket}?{name}=1") as socket:
        error = event(socket, "error")
        assert error["code"] == "unknown_option"
        assert error["message"].startswith(f"unknown option {name!r}, expected one of dialect, voice")
        assert rest(socket)[1] == 1008


def test_a_client_that_only_sends_controls_is_idle(served: Served):
    begun = time.monotonic()
    with connect(served.websocket) as socket:
        event(socket, "conversation.opened")
        try:
            while time.monotonic() - begun < 10 * IDLE_TIMEOUT_S:
                socket.send(json.dumps({"type": "reset"}))
                time.sleep(0.5)
        except ConnectionClosed:
            return
    raise AssertionError("it held its place without a sound")


def test_options_come_in_the_query(served: Served, pcm):
    def heard(query: str) -> bytes:
        return bytes(asyncio.run(talk(served.websocket + query, pcm[: 2 * TICK].tobytes())).pcm)

    assert heard("?voice=ethan") != heard("?voice=chelsie")
    drawn = [heard(f"?temperature=0.9&seed={seed}") for seed in (5, 5, 6)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_options_may_come_in_a_frame_of_their_own(served: Served, pcm):
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
def test_a_bad_option_in_a_frame_is_named_and_the_conversation_goes_on(served: Served, pcm, options, message):
    with connect(served.websocket) as socket:
        socket.send(json.dumps({"type": "options", **options}))
        error = event(socket, "error")
        assert error["code"] in ("bad_option", "unknown_option")
        assert message in error["message"]
        socket.send(pcm[:TICK].tobytes())
        assert end(socket)[1] == 1000


def test_options_after_the_first_sound_are_refused(served: Served, pcm):
    with connect(served.websocket) as socket:
        socket.send(pcm[:TICK].tobytes())
        socket.send(json.dumps({"type": "options", "voice": "ethan"}))
        assert event(socket, "error")["code"] == "too_late"
        assert end(socket)[1] == 1000


def test_a_ping_is_answered_with_what_ticks_take(served: Served, pcm):
    with connect(served.websocket) as socket:
        event(socket, "conversation.opened")
        socket.send(json.dumps({"type": "ping", "sent": 12.5}))
        assert event(socket, "pong") == {"type": "pong", "sent": 12.5, "tick_ms": None}
        socket.send(pcm[:TICK].tobytes())
        while not isinstance(socket.recv(timeout=20), bytes):
            pass
        socket.send(json.dumps({"type": "ping", "sent": 0}))
        assert 0 < event(socket, "pong")["tick_ms"] < 5000


def test_gaps_that_a_page_tells_of_are_counted(served: Served):
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


def test_the_voices_are_named(served: Served):
    with urllib.request.urlopen(f"{served.http}/voices") as response:
        assert "ethan" in json.load(response)


def test_reset_before_any_sound_is_told_too(served: Served):
    with connect(served.websocket) as socket:
        socket.send(json.dumps({"type": "reset"}))
        assert event(socket, "reset") == {"type": "reset", "at_ms": 0}


def test_reset_is_told_and_begins_anew(served: Served, pcm):
    with connect(served.websocket) as socket:
        socket.send(pcm[: 2 * TICK].tobytes())
        event(socket, "text")
        socket.send(json.dumps({"type": "reset"}))
        socket.send(pcm[:TICK].tobytes())
        assert event(socket, "reset") == {"type": "reset", "at_ms": 0}
        assert end(socket)[1] == 1000


def test_a_client_that_says_nothing_more_is_told_and_closed(served: Served, pcm):
    with connect(served.websocket) as socket:
        socket.send(pcm[:TICK].tobytes())
        error = event(socket, "error")
        assert error["code"] == "idle"
        assert f"no whole tick came for {IDLE_TIMEOUT_S} s" in error["message"]
        assert rest(socket)[1] == 1011
    wait_until_empty(served)


def test_a_conversation_without_a_sound_ends_without_one(served: Served):
    with connect(served.websocket) as socket:
        event(socket, "conversation.opened")
    wait_until_empty(served)


def test_probes(served: Served):
    assert health(served)["status"] == "ok"
    with urllib.request.urlopen(f"{served.http}/readyz") as response:
        assert json.load(response) == {"status": "ready"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 2**70}, f"seed: expected a number of at most 64 bits, got {2**70}"),
        ({"system_prompt": "one\0two"}, "system_prompt: expected text without a NUL character"),
        ({"system_prompt": "\ud800"}, "system_prompt: expected Unicode, got half a character"),
    ],
)
def test_what_triton_would_cut_off_is_refused_by_name(served: Served, pcm, options, message):
    """Its conversation goes on with its other options."""
    with connect(served.websocket) as socket:
        event(socket, "conversation.opened")
        socket.send(json.dumps({"type": "options", **options}))
        error = event(socket, "error")
        assert (error["code"], message in error["message"]) == ("bad_option", True)
        socket.send(pcm[:TICK].tobytes())
        assert end(socket)[1] == 1000


def test_a_conversation_that_is_cut_off_frees_its_slot_at_once(served: Served, pcm):
    """Its task is cancelled while ticks are under way: Triton gets an END all the same, long before it would idle."""
    wait_until_empty(served)

    async def cut_off(link: TritonLink) -> None:
        async def ticks():
            for number in range(100):
                yield TickIn(pcm[:TICK].tobytes(), start=number == 0)
                await asyncio.sleep(0.05)

        answers = 0

        async def talk_on() -> None:
            nonlocal answers
            async for _ in link.converse(new_sequence_id(), ticks()):
                answers += 1

        task = asyncio.create_task(talk_on())
        while answers < 2:
            await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def all_slots_twice() -> None:
        link = TritonLink(served.settings)
        for _ in range(2 * served.settings.engine.slots):
            await cut_off(link)
        await link.close()

    begun = time.monotonic()
    asyncio.run(all_slots_twice())
    assert time.monotonic() - begun < IDLE_TIMEOUT_S, "else idling could have freed them"
    with connect(served.websocket) as socket:
        event(socket, "conversation.opened")
        socket.send(pcm[:TICK].tobytes())
        assert end(socket)[1] == 1000


@pytest.mark.parametrize("path", ["/ws/pcm16?system_prompt=" + "la%20" * 900, "/v1/realtime"])
def test_a_system_prompt_of_too_many_tokens_is_the_clients_mistake(served_turns: Served, pcm, path: str):
    """Only the engine can count them: it is told at the first sound."""
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
