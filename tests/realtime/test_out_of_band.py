"""Out-of-band responses: when the engine is requested to answer one, and what the client receives."""

from __future__ import annotations

import pytest

from contract.controls import Controls
from frontend.realtime.events import RealtimeError
from tests.realtime.talk import (
    MANUAL,
    Silent,
    Talk,
    answer_done,
    answer_started,
    error,
    interrupted,
    spoken_turn,
    typed,
)

WANTED = {
    "conversation": "none",
    "output_modalities": ["text"],
    "metadata": {"topic": "mood"},
    "instructions": "Judge.",
}
BUSY = {**error("answer_active"), "out_of_band": True}
STARTED = {**answer_started(0), "out_of_band": True}
INTERRUPTED = {**interrupted(0), "out_of_band": True}


def done(text: str) -> list[dict]:
    return [{"type": "text", "text": text, "out_of_band": True}, {**answer_done(0, text=text), "out_of_band": True}]


def requested(talk: Talk) -> list[str]:
    """Return the instructions of the requested out-of-band answers, "cancel" for a cancellation."""
    controls = [each.out_of_band for each in talk.controls() if each.out_of_band]
    return ["cancel" if each.cancel else each.instructions for each in controls]


def test_response_has_no_item_of_the_conversation(talk: Talk):
    talk.send("response.create", response=WANTED)
    assert talk.received[0]["response"]["conversation_id"] is None
    (controls,) = talk.controls()
    assert controls.out_of_band
    assert controls.out_of_band.turn["speech"] is False
    talk.tick([STARTED, *done("calm")])
    assert talk.kinds() == [
        "response.created",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.done",
    ]
    response = talk.received[-1]["response"]
    assert (response["status"], response["metadata"]) == ("completed", {"topic": "mood"})
    assert response["output"][0]["content"][0]["text"] == "calm"
    with pytest.raises(RealtimeError, match="expected the id of an item"):
        talk.send("conversation.item.delete", item_id=response["output"][0]["id"])


def test_response_waits_for_the_conversation_and_the_next_response_for_it(talk: Talk):
    talk.send("response.create")
    talk.send("response.create", response=WANTED)
    assert requested(talk) == []
    talk.tick([answer_started(1)])
    talk.tick([answer_done(1)])
    assert requested(talk) == ["Judge."]
    before = len(talk.received)
    talk.send("response.create")
    assert talk.received[before:] == [], "not begun"
    talk.tick([STARTED, *done("calm")])
    assert talk.ladder()[-2:] == ["response.done", "response.created"]
    assert talk.controls() == [Controls(respond=True)]


def test_response_is_retried_after_any_engine_event(talk: Talk):
    """The engine had received the user's speech before the request."""
    talk.send("response.create", response=WANTED)
    assert len(requested(talk)) == 1
    talk.tick([{"type": "speech_started"}, BUSY])
    talk.tick([])
    assert requested(talk) == []
    talk.tick([{"type": "speech_stopped", "at_ms": 320}, spoken_turn(1)], turn={"create_response": False})
    assert len(requested(talk)) == 1
    talk.tick([STARTED, *done("calm")])
    assert talk.received[-1]["response"]["status"] == "completed"


def test_response_is_retried_when_the_engine_drops_the_users_turn(talk: Talk):
    talk.send("response.create", response=WANTED)
    talk.controls()
    talk.tick([BUSY])
    assert requested(talk) == []
    talk.report("input_dropped", turn=1)
    assert requested(talk) == ["Judge."]


def test_response_keeps_the_options_of_its_request_while_it_waits(talk: Talk):
    talk.send("response.create")
    talk.send("response.create", response={"conversation": "none"})
    talk.send("session.update", session={"type": "realtime", "output_modalities": ["text"]})
    talk.controls()
    talk.tick([answer_started(1), answer_done(1)])
    (controls,) = [each.out_of_band for each in talk.controls() if each.out_of_band]
    assert controls.turn["speech"] is True


def test_users_speech_ends_a_response(talk: Talk):
    talk.send("response.create", response=WANTED)
    talk.tick([STARTED, {"type": "text", "text": "calm", "out_of_band": True}])
    ended = {**interrupted(0, by="speech", heard_text="ca"), "out_of_band": True}
    talk.tick([{"type": "speech_started"}, ended])
    response = talk.received[-1]["response"]
    assert response["status_details"] == {"type": "cancelled", "reason": "turn_detected"}
    assert response["output"][0]["content"][0]["text"] == "ca"


@pytest.mark.parametrize("when", ["queued", "requested", "refused"])
def test_response_is_cancelled_by_its_id(talk: Talk, when: str):
    talk.send("session.update", session=MANUAL)
    if when == "queued":
        talk.send("response.create")
    talk.send("response.create", response=WANTED)
    response_id = talk.received[-1]["response"]["id"]
    talk.controls()
    if when != "queued":
        with pytest.raises(RealtimeError, match="no active response"):
            talk.send("response.cancel")
    talk.send("response.cancel", response_id=response_id)
    if when == "queued":
        assert requested(talk) == []
    else:
        talk.send("response.cancel", response_id=response_id)
        assert requested(talk) == ["cancel"]
        talk.tick([BUSY if when == "refused" else INTERRUPTED])
    response = talk.received[-1]["response"]
    assert (response["id"], response["status"]) == (response_id, "cancelled")
    talk.send("conversation.item.create", item=typed("next"))
    assert requested(talk) == []


def test_call_falls_silent_when_a_response_is_cancelled_or_cleared():
    cleared: list[str] = []

    class Counting(Silent):
        def clear(self) -> None:
            cleared.append("cleared")

    call = Talk(Counting())
    call.send("response.create", response={**WANTED, "output_modalities": ["audio"]})
    call.tick([STARTED, {"type": "speech_started"}])
    assert cleared == [], "the engine reports whether it ends"
    call.send("output_audio_buffer.clear")
    assert requested(call) == ["Judge.", "cancel"]
    assert len(cleared) == 1
    call.tick([INTERRUPTED])
    assert len(cleared) == 2
    call.loop.close()


def test_waiting_responses_are_bounded(talk: Talk):
    for _ in range(9):
        talk.send("response.create", response=WANTED)
    with pytest.raises(RealtimeError, match="8 responses wait") as refused:
        talk.send("response.create", response=WANTED)
    assert refused.value.code == "conversation_already_has_active_response"


def test_instructions_that_exceed_the_context_fail_only_their_response(talk: Talk):
    talk.send("response.create", response=WANTED)
    talk.tick([{**BUSY, "code": "turn_too_long"}])
    assert talk.received[-1]["response"]["status"] == "failed"
    talk.send("response.create")
    assert talk.kinds()[-1] == "response.created"
