"""The bridge before a real Triton: the same audio, limits, and the ends of conversations."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.error
import urllib.request
from socket import SHUT_RDWR

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from client.python_grpc import converse
from client.python_websocket import talk
from frontend.tick import TickIn, new_sequence_id
from frontend.triton import TritonLink
from tests.conftest import IDLE_TIMEOUT_S, Served
from tests.sockets import end, event, health, rest, wait_until_empty
from tests.sound import is_same_sound
from tests.test_triton import TICK


@pytest.mark.parametrize("frame_bytes", [2, 640, 10240, 33333 * 2, 10**6])
def test_bridge_equals_triton_independent_of_the_clients_frames(served: Served, pcm, frame_bytes):
    samples = pcm[: 4 * TICK + 1000] if frame_bytes > 2 else pcm[:TICK]
    expected, text = converse(served.triton_grpc, samples)

    async def converse_in_frames() -> None:
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
                elif (found_event := json.loads(message))["type"] == "text":
                    words += found_event["text"]
        sound = np.frombuffer(found, np.int16)
        assert is_same_sound(sound[: len(expected)], expected)
        assert words.startswith(text)

    asyncio.run(converse_in_frames())


def test_first_event_has_id_and_formats(served: Served):
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


def test_client_that_is_lost_within_a_tick_frees_its_place_and_its_slot(served: Served, pcm):
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


def test_conversation_beyond_the_capacity_is_refused_before_the_upgrade(served: Served, pcm):
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


def test_client_that_sends_only_controls_is_idle(served: Served):
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


def test_voices_are_reported(served: Served):
    with urllib.request.urlopen(f"{served.http}/voices") as response:
        assert "ethan" in json.load(response)


def test_idle_client_receives_an_error_and_is_closed(served: Served, pcm):
    with connect(served.websocket) as socket:
        socket.send(pcm[:TICK].tobytes())
        error = event(socket, "error")
        assert error["code"] == "idle"
        assert f"no whole tick came for {IDLE_TIMEOUT_S} s" in error["message"]
        assert rest(socket)[1] == 1011
    wait_until_empty(served)


def test_conversation_without_audio_ends(served: Served):
    with connect(served.websocket) as socket:
        event(socket, "conversation.opened")
    wait_until_empty(served)


def test_probes_report_a_ready_bridge(served: Served):
    assert health(served)["status"] == "ok"
    with urllib.request.urlopen(f"{served.http}/readyz") as response:
        assert json.load(response) == {"status": "ready"}


def test_cancelled_conversation_frees_its_slot_at_once(served: Served, pcm):
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
