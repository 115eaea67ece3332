"""The input audio buffer: commits, clears, detection that is turned off, and times in the client's own audio."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from contract.controls import Controls
from frontend.audio.formats import AudioDecoder
from frontend.realtime.events import RealtimeError
from tests.realtime.talk import DETECTED, HALF_A_SECOND, MANUAL, Talk, error, spoken_turn

A_SECOND = base64.b64encode(bytes(48_000)).decode()


def test_call_takes_audio_from_its_track_in_the_format_of_the_track(call: Talk):
    with pytest.raises(RealtimeError, match="in its track"):
        call.append()
    g711 = {"format": {"type": "audio/pcmu"}}
    call.send("session.update", session={"type": "realtime", "audio": {"input": g711, "output": g711}})
    audio = call.received[-1]["session"]["audio"]
    assert audio["input"]["format"] == audio["output"]["format"] == {"type": "audio/pcm", "rate": 24_000}
    call.send("response.create", response={"audio": {"output": g711}})
    assert call.received[-1]["response"]["audio"]["output"]["format"]["type"] == "audio/pcm"


def test_audio_without_a_commit_is_bounded(talk: Talk):
    """A minute: events beyond it are refused, and the oldest audio of a track is dropped, since it never ends."""
    talk.send("session.update", session=MANUAL)
    for _ in range(60):
        talk.append(A_SECOND)
    with pytest.raises(RealtimeError) as refused:
        talk.append(A_SECOND)
    assert refused.value.code == "input_audio_buffer_full"
    talk.loop.run_until_complete(talk.conversation.append_audio(b"\1" * 32_000))
    assert talk.conversation.clock.held_ms == 60_000
    talk.send("input_audio_buffer.clear")
    talk.append(A_SECOND)


def test_committed_audio_that_waits_is_bounded(talk: Talk):
    audio = {"type": "input_audio", "audio": base64.b64encode(bytes(48_000 * 40)).decode()}
    item = {"type": "message", "role": "user", "content": [audio]}
    talk.send("conversation.item.create", item=item)
    talk.send("conversation.item.create", item=item)
    with pytest.raises(RealtimeError, match="got 80640 ms") as refused:
        talk.send("conversation.item.create", item=item)
    assert refused.value.code == "input_audio_buffer_full"


def test_turn_starts_no_earlier_than_the_end_of_the_turn_before(talk: Talk):
    """With its padding of 300 ms it would overlap the turn before, after a shorter pause."""
    for _ in range(6):
        talk.append()
    while talk.next_tick():
        pass
    for kind, at_ms in (("started", 500), ("stopped", 1500), ("started", 1600), ("stopped", 2000), ("started", 2600)):
        talk.report(f"speech_{kind}", at_ms=at_ms)
    fields = ("audio_start_ms", "audio_end_ms")
    times = [value for event in talk.received for name, value in event.items() if name in fields]
    delay_ms = 10  # delay of the resampler
    assert times == [ms - delay_ms for ms in (200, 1500, 1500, 2000, 2300)]


def test_commit_without_speech_is_refused_by_the_id_of_its_event(talk: Talk):
    talk.append()
    talk.send("input_audio_buffer.commit", event_id="mine")
    talk.tick([error("nothing_to_commit")], commit=True)
    refused = talk.received[-1]["error"]
    assert (refused["code"], refused["event_id"]) == ("input_audio_buffer_commit_empty", "mine")


def test_turn_is_answered_as_the_engine_had_the_option_at_its_end(talk: Talk):
    """Detection is on again before the commit is confirmed: that turn has no answer."""
    talk.send("session.update", session=MANUAL)
    talk.append()
    talk.tick([], turn={"create_response": False})
    talk.send("input_audio_buffer.commit")
    talk.send("session.update", session=DETECTED)
    talk.tick([spoken_turn(1)], listen=True, commit=True)
    assert "response.created" not in talk.kinds()
    talk.tick([], turn={"create_response": True})
    talk.tick([spoken_turn(2)])
    assert "response.created" in talk.kinds()


def test_commit_with_detection_requests_no_response(talk: Talk):
    """The client requests the response, which has the client's metadata."""
    talk.tick([{"type": "speech_started"}])
    talk.append()
    talk.send("input_audio_buffer.commit")
    talk.send("response.create", response={"metadata": {"name": "mine"}})
    *_, committing, after = talk.controls()
    assert committing == Controls(turn={"create_response": False}, commit=True)
    assert after == Controls(turn={"create_response": True})
    talk.tick([spoken_turn(1)], turn={"create_response": False}, commit=True)
    assert [event["response"]["metadata"] for event in talk.of_kind("response.created")] == [{"name": "mine"}]
    assert talk.controls() == [Controls(respond=True)]


def test_clear_is_always_sent_to_an_engine_that_has_the_conversation(talk: Talk):
    talk.send("input_audio_buffer.clear")
    assert talk.controls() == [], "the conversation has not started"
    talk.append()
    talk.send("input_audio_buffer.clear")
    assert talk.controls() == [Controls(clear=True)]
    assert talk.kinds().count("input_audio_buffer.cleared") == 2


@pytest.mark.parametrize("ends", ["input_audio_buffer.clear", "input_audio_buffer.commit"])
def test_half_a_sample_ends_with_its_buffer(talk: Talk, ends: str):
    talk.send("session.update", session=MANUAL)
    samples = np.arange(9600, dtype=np.int16)
    audio = base64.b64encode(samples.tobytes()).decode()
    talk.append(base64.b64encode(samples.tobytes() + b"\1").decode())
    talk.send(ends)
    talk.controls()
    talk.append(audio)
    talk.send("input_audio_buffer.commit")
    pcm = b"".join(tick.pcm for tick in (talk.next_tick(), talk.next_tick()) if tick)
    decoder = AudioDecoder("audio/pcm")
    expected = decoder.feed(audio) + decoder.end()
    assert len(expected) == 2 * (6400 + 160), "the filter's delay and all of the audio"
    assert pcm[: len(expected)] == expected


@pytest.mark.parametrize("is_quick", [False, True])
def test_speech_in_progress_when_detection_ends_is_part_of_the_commit(talk: Talk, is_quick: bool):
    """Whether the engine knows of the change by then or not; no tick of silence lies in between."""
    talk.append()
    assert talk.controls() == []
    talk.report("speech_started", at_ms=100)
    talk.send("session.update", session=MANUAL)
    talk.append()
    tick = talk.next_tick()
    assert tick
    assert tick.controls.turn == {"detection": "manual", "create_response": False}
    assert tick.microphone
    assert tick.microphone.length == len(tick.pcm), "all of it is sound"
    if not is_quick:
        talk.tick([{"type": "speech_stopped", "at_ms": 400}], turn=tick.controls.turn)
        assert talk.controls() == [], "the rest waits for its commit"
    talk.send("input_audio_buffer.commit")
    assert not any(controls.listen for controls in talk.controls())
    talk.tick([], turn=tick.controls.turn)
    talk.append()
    talk.send("input_audio_buffer.commit")
    assert any(controls.listen for controls in talk.controls())


def test_speech_that_is_reported_after_detection_ended_is_part_of_the_commit(talk: Talk):
    talk.append(HALF_A_SECOND)
    talk.send("session.update", session=MANUAL)
    talk.report("speech_started", at_ms=100)
    talk.tick([{"type": "speech_stopped", "at_ms": 400}], turn={"detection": "manual"})
    talk.controls()
    talk.append(HALF_A_SECOND)
    talk.send("input_audio_buffer.commit")
    assert not any(controls.listen for controls in talk.controls())
