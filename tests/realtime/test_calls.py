"""The protocol over WebRTC: an aiortc client, on a good network and on a bad one."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request

import numpy as np
import pytest
from aiortc import RTCRtpReceiver
from openai import OpenAI

from frontend.webrtc.calls import CONNECTS_S
from tests.conftest import Served
from tests.realtime.caller import Caller, Network, calling
from tests.sockets import health, wait_until_empty

ORDER = "Can I get a medium dark roast latte with soy milk?"
CHANGE = "Make it large."
FRAMES_A_SECOND = 50
DOWN_S = 12.0  # two intervals of ICE's consent checks are shorter
RELEASED_S = 3  # timeout until the slot of an ended call is free, in seconds
LOUD = 300  # smallest peak of a frame with speech, of 32768


def loud_frames(caller: Caller, first: int = 0) -> int:
    """Return the number of received frames of 20 ms that hold speech."""
    return sum(int(np.abs(frame).max()) > LOUD for frame in caller.heard[first:])


@pytest.mark.parametrize(("loss", "jitter_s"), [(0.0, 0.0), (0.03, 0.06)], ids=["good network", "bad network"])
def test_user_speaks_twice_and_interrupts_in_a_call(served_barista: Served, loss: float, jitter_s: float):
    async def talk() -> None:
        network = Network(loss, jitter_s) if loss else None
        async with calling(served_barista.http, network) as caller:
            caller.microphone.speak(ORDER)
            started = await caller.wait_for("output_audio_buffer.started")
            await asyncio.sleep(1.5)
            before, heard = len(caller.events), len(caller.heard)
            assert loud_frames(caller) > 15  # aiortc's client waits 320 ms at each packet that is lost
            caller.microphone.speak(CHANGE)
            cleared = await caller.wait_for("output_audio_buffer.cleared", before)
            first = (await caller.wait_for("response.done", before))["response"]
            assert first["id"] == cleared["response_id"]
            assert (first["status"], first["status_details"]["reason"]) == ("cancelled", "turn_detected")
            truncated = await caller.wait_for("conversation.item.truncated", before)
            assert truncated["item_id"] == first["output"][0]["id"]
            sent_s = caller.received_s(cleared) - caller.received_s(started)
            assert truncated["audio_end_ms"] / 1000 == pytest.approx(sent_s, abs=0.1 + jitter_s)

            second = await caller.wait_for("output_audio_buffer.started", before)
            done = (await caller.wait_for("response.done", caller.events.index(second)))["response"]
            assert (done["status"], done["id"]) == ("completed", second["response_id"])
            assert "large" in done["output"][0]["content"][0]["transcript"]
            await caller.wait_for("output_audio_buffer.stopped", before)
            await asyncio.sleep(0.3)
            spoken = done["usage"]["output_token_details"]["audio_tokens"] * 4  # frames of 20 ms
            rest = FRAMES_A_SECOND  # frames of the first answer before its interruption
            assert 0.6 * spoken < loud_frames(caller, heard) <= spoken + rest
            assert "response.output_audio.delta" not in caller.kinds()
            assert "error" not in caller.kinds()
            if network:
                assert network.lost > 20
                assert network.passed > 500

    asyncio.run(asyncio.wait_for(talk(), 90))


def test_call_survives_a_temporary_loss_of_the_network(served_barista: Served):
    """No speech is lost: ICE fails only after 30 s."""

    async def talk() -> None:
        network = Network(0.0, 0.0)
        async with calling(served_barista.http, network) as caller:
            caller.microphone.speak(ORDER)
            first = (await caller.wait_for("response.done"))["response"]
            order = first["output"][0]["content"][0]["transcript"].split(". ")[0].split(", ")[1]
            assert "soy milk" in order
            network.is_down = True
            await asyncio.sleep(DOWN_S)
            network.is_down, before = False, len(caller.events)
            assert caller.kinds(before) == []
            item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "what did I order"}]}
            caller.send("conversation.item.create", item=item)
            caller.send("response.create")
            second = (await caller.wait_for("response.done", before))["response"]
            assert order in second["output"][0]["content"][0]["transcript"]

    asyncio.run(asyncio.wait_for(talk(), 90))


def test_output_can_be_cleared_and_a_call_that_ends_frees_its_slot(served_barista: Served):
    async def talk() -> None:
        async with calling(served_barista.http) as caller:
            caller.send("session.update", session={"type": "realtime", "audio": {"input": {"turn_detection": None}}})
            await caller.wait_for("session.updated")
            content = [{"type": "input_text", "text": "I would like a large latte please"}]
            caller.send("conversation.item.create", item={"type": "message", "role": "user", "content": content})
            caller.send("response.create")
            await caller.wait_for("output_audio_buffer.started")
            caller.send("output_audio_buffer.clear")
            await caller.wait_for("output_audio_buffer.cleared")
            done = (await caller.wait_for("response.done"))["response"]
            assert (done["status"], done["status_details"]["reason"]) == ("cancelled", "client_cancelled")
            await asyncio.sleep(0.3)
            heard = len(caller.heard)
            await asyncio.sleep(0.5)
            assert loud_frames(caller, heard) == 0
            assert health(served_barista)["conversations"] == 1
        await asyncio.to_thread(wait_until_empty, served_barista, "sockets", RELEASED_S)

    asyncio.run(asyncio.wait_for(talk(), 60))


def read_json(address: str) -> dict:
    with urllib.request.urlopen(address) as answer:
        return json.load(answer)


def test_call_is_reported_and_ended_over_http(served_barista: Served):
    async def talk() -> None:
        async with calling(served_barista.http) as caller:
            about = f"{served_barista.http}{caller.location}"
            while (call := await asyncio.to_thread(read_json, about))["tick_ms"] is None:
                await asyncio.sleep(0.1)
            assert call["id"] == caller.location.rsplit("/", 1)[1]
            assert 0 < call["tick_ms"] < 10_000
            request = urllib.request.Request(f"{about}/hangup", b"")
            with await asyncio.to_thread(urllib.request.urlopen, request) as answer:
                assert answer.status == 200
            await asyncio.to_thread(wait_until_empty, served_barista, "sockets", RELEASED_S)
            with pytest.raises(urllib.error.HTTPError) as refused:
                await asyncio.to_thread(urllib.request.urlopen, request)
            assert refused.value.code == 404

    asyncio.run(asyncio.wait_for(talk(), 60))


def test_openai_package_makes_a_call_with_its_session(served_barista: Served):
    """The form holds the SDP and the session."""

    async def offer() -> str:
        caller = Caller()
        await caller.peer.setLocalDescription(await caller.peer.createOffer())
        sdp = caller.peer.localDescription.sdp
        await caller.peer.close()
        return sdp

    client = OpenAI(api_key="none", base_url=f"{served_barista.http}/v1")
    answer = client.realtime.calls.create(
        sdp=asyncio.run(offer()), session={"type": "realtime", "model": "gpt-realtime", "instructions": "Be brief."}
    )
    assert "a=ice-ufrag" in answer.read().decode()
    client.realtime.calls.hangup(answer.response.headers["Location"].rsplit("/", 1)[1])
    wait_until_empty(served_barista, "sockets", RELEASED_S)


@pytest.mark.parametrize(
    ("body", "kind", "status", "code"),
    [
        (b"", "application/sdp", 400, "invalid_offer"),
        (b"v=0\r\nm=audio nonsense", "application/sdp", 400, "invalid_offer"),
        (b"v=0\r\n" + b"a=candidate:1 1 udp 1 127.0.0.1 9 typ host\r\n" * 101, "application/sdp", 400, "invalid_offer"),
        (b"v=0\r\n" + b"m=audio 9 UDP/TLS/RTP/SAVPF 0\r\n" * 5, "application/sdp", 400, "invalid_offer"),
        (b"x" * 300_000, "application/sdp", 413, "body_too_large"),
        (b"{}", "application/json", 415, "unsupported_content_type"),
        (b"no form", "multipart/form-data", 400, "invalid_form"),
    ],
)
def test_invalid_offer_is_an_error_with_a_reason(served_barista: Served, body, kind, status, code):
    request = urllib.request.Request(f"{served_barista.http}/v1/realtime/calls", body, {"Content-Type": kind})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=10)
    assert refused.value.code == status
    assert f'"code":"{code}"' in refused.value.read().decode()
    assert health(served_barista)["sockets"] == 0


def test_unsupported_parts_of_an_offer_are_inactive(served_barista: Served):
    """Frames of an accepted camera would fill a queue that no code reads."""

    async def call() -> None:
        caller = Caller()
        caller.peer.addTransceiver("video")
        await caller.peer.setLocalDescription(await caller.peer.createOffer())
        answer = await asyncio.to_thread(caller.post, served_barista.http, caller.peer.localDescription.sdp)
        video = answer.split("m=video")[1].split("m=")[0]
        assert "a=inactive" in video
        request = urllib.request.Request(f"{served_barista.http}{caller.location}/hangup", b"")
        await asyncio.to_thread(urllib.request.urlopen, request)
        await caller.peer.close()

    asyncio.run(call())
    wait_until_empty(served_barista, "sockets", RELEASED_S)


@pytest.mark.parametrize("what", ["sound by G.711", "a text section", "a session without end"])
def test_offer_that_cannot_be_answered_is_refused_and_frees_its_slot(served_barista: Served, what: str):
    async def offer() -> str:
        caller = Caller()
        if what == "sound by G.711":
            known = RTCRtpReceiver.getCapabilities("audio").codecs
            caller.peer.getTransceivers()[0].setCodecPreferences([c for c in known if c.mimeType == "audio/PCMU"])
        await caller.peer.setLocalDescription(await caller.peer.createOffer())
        sdp = caller.peer.localDescription.sdp
        await caller.peer.close()
        return sdp + ("m=text 9 UDP/TLS/RTP/SAVPF 98\r\na=mid:9\r\n" if what == "a text section" else "")

    sdp, session = asyncio.run(offer()), "{}"
    if what == "a session without end":
        session = '{"x":' * 700 + "1" + "}" * 700
    fields = {"sdp": sdp, "session": session}
    head = '--here\r\nContent-Disposition: form-data; name="{}"\r\n\r\n'
    parts = [f"{head.format(name)}{text}\r\n" for name, text in fields.items()]
    body = "".join([*parts, "--here--\r\n"]).encode()
    request = urllib.request.Request(
        f"{served_barista.http}/v1/realtime/calls", body, {"Content-Type": "multipart/form-data; boundary=here"}
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=10)
    assert refused.value.code == 400
    wait_until_empty(served_barista, "sockets", RELEASED_S)


def test_client_that_never_connects_frees_its_slot(served_barista: Served):
    async def call() -> None:
        caller = Caller()
        await caller.peer.setLocalDescription(await caller.peer.createOffer())
        await asyncio.to_thread(caller.post, served_barista.http, caller.peer.localDescription.sdp)
        await caller.peer.close()

    asyncio.run(call())
    assert health(served_barista)["sockets"] == 1
    wait_until_empty(served_barista, "sockets", CONNECTS_S + RELEASED_S)
