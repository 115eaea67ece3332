"""Responses out of band, without an engine: when it is asked for one, and what the client is told."""

from __future__ import annotations

import json

import pytest

from frontend.realtime.events import RealtimeError
from tests.realtime.talk import MANUAL, USAGE, Talk, spoken_turn, typed

APART = {"conversation": "none", "output_modalities": ["text"], "metadata": {"topic": "mood"}, "instructions": "Judge."}
BUSY = {"type": "error", "code": "answer_active", "message": "out_of_band came while ...", "out_of_band": True}


def started() -> dict:
    return {"type": "answer_started", "turn": 0, "out_of_band": True}


def done(text: str) -> list[dict]:
    ended = {"type": "answer_done", "turn": 0, "spoken_ms": 0, "text": text, "reason": "end", **USAGE}
    return [{"type": "text", "text": text, "out_of_band": True}, {**ended, "out_of_band": True}]


def asked_apart(talk: Talk) -> list[dict]:
    found = [json.loads(asked["out_of_band"]) for asked in talk.asked() if "out_of_band" in asked]
    return [{name: value for name, value in each.items() if name != "turn"} for each in found]


def test_its_ladder_has_no_item_of_the_conversation(talk: Talk):
    talk.say("response.create", response=APART)
    assert talk.told[0]["response"]["conversation_id"] is None
    (asked,) = talk.asked()
    assert json.loads(asked["out_of_band"])["turn"]["speech"] is False
    talk.tick([started(), *done("calm")])
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
    response = talk.told[-1]["response"]
    assert (response["status"], response["metadata"]) == ("completed", {"topic": "mood"})
    assert response["output"][0]["content"][0]["text"] == "calm"
    with pytest.raises(RealtimeError, match="there is no item"):
        talk.say("conversation.item.delete", item_id=response["output"][0]["id"])


def test_it_waits_for_who_speaks_and_the_next_response_waits_for_it(talk: Talk):
    talk.say("response.create")
    talk.say("response.create", response=APART)
    assert asked_apart(talk) == []
    talk.engine(type="answer_started", turn=1)
    talk.tick([{"type": "answer_done", "turn": 1, "spoken_ms": 0, "text": "", "reason": "end", **USAGE}])
    assert asked_apart(talk) == [{"instructions": "Judge."}]
    before = len(talk.told)
    talk.say("response.create")
    assert talk.told[before:] == [], "not begun"
    talk.tick([started(), *done("calm")])
    assert [kind for kind in talk.kinds()[before:] if kind in ("response.created", "response.done")] == [
        "response.done",
        "response.created",
    ]
    assert talk.asked() == [{"respond": True}]


def test_where_the_engine_was_busy_it_is_asked_again_when_something_has_happened(talk: Talk):
    """It had heard the user before it heard of the response."""
    talk.say("response.create", response=APART)
    assert len(asked_apart(talk)) == 1
    talk.tick([{"type": "speech_started", "at_ms": 0}, BUSY])
    talk.tick([])
    assert asked_apart(talk) == []
    talk.tick([{"type": "speech_stopped", "at_ms": 320}, spoken_turn(1)], create_response=False)
    assert len(asked_apart(talk)) == 1
    talk.tick([started(), *done("calm")])
    assert talk.told[-1]["response"]["status"] == "completed"


def test_the_users_speech_ends_it(talk: Talk):
    talk.say("response.create", response=APART)
    talk.tick([started()])
    ended = {"type": "interrupted", "turn": 0, "by": "speech", "heard_ms": 0, "heard_text": "ca", **USAGE}
    talk.tick([{"type": "speech_started", "at_ms": 0}, {**ended, "out_of_band": True}])
    response = talk.told[-1]["response"]
    assert response["status_details"] == {"type": "cancelled", "reason": "turn_detected"}
    assert response["output"][0]["content"][0]["text"] == "ca"


@pytest.mark.parametrize("when", ["it waits", "it is asked for", "the engine is busy"])
def test_it_is_cancelled_by_its_id(talk: Talk, when: str):
    talk.say("session.update", session=MANUAL)
    if when == "it waits":
        talk.say("response.create")
    talk.say("response.create", response=APART)
    response_id = talk.told[-1]["response"]["id"]
    talk.asked()
    if when != "it waits":
        with pytest.raises(RealtimeError, match="no active response"):
            talk.say("response.cancel")
    talk.say("response.cancel", response_id=response_id)
    if when == "it waits":
        assert asked_apart(talk) == []
    else:
        talk.say("response.cancel", response_id=response_id)
        assert asked_apart(talk) == [{"cancel": True}]
        ended = {"type": "interrupted", "turn": 0, "by": "cancel", "heard_ms": 0, "heard_text": "", **USAGE}
        talk.tick([BUSY if when == "the engine is busy" else {**ended, "out_of_band": True}])
    response = talk.told[-1]["response"]
    assert (response["id"], response["status"]) == (response_id, "cancelled")
    talk.say("conversation.item.create", item=typed("next"))
    assert asked_apart(talk) == []


def test_in_a_call_it_falls_silent_when_it_is_cancelled_or_cleared(call: Talk):
    silenced: list[str] = []
    call.conversation._player.clear = lambda: silenced.append("silent")
    spoken = {**APART, "output_modalities": ["audio"]}
    call.say("response.create", response=spoken)
    call.tick([started(), {"type": "speech_started", "at_ms": 0}])
    assert silenced == [], "the engine says whether it ends"
    call.say("output_audio_buffer.clear")
    assert asked_apart(call) == [{"instructions": "Judge."}, {"cancel": True}]
    assert silenced == ["silent"]
    ended = {"type": "interrupted", "turn": 0, "by": "cancel", "heard_ms": 0, "heard_text": "", **USAGE}
    call.tick([{**ended, "out_of_band": True}])
    assert silenced == ["silent"] * 2


def test_what_is_cleared_when_detection_has_ended_is_forgotten_by_the_engine(talk: Talk):
    """Its turn, which was kept for a commit, would be in the way."""
    talk.engine(type="speech_started", at_ms=0)
    talk.say("session.update", session=MANUAL)
    talk.say("input_audio_buffer.clear")
    detections = [json.loads(asked["turn"])["detection"] for asked in talk.asked()]
    assert detections == ["server_vad", "manual"]


def test_those_that_wait_are_bounded(talk: Talk):
    for _ in range(9):
        talk.say("response.create", response=APART)
    with pytest.raises(RealtimeError, match="8 responses out of band wait") as refused:
        talk.say("response.create", response=APART)
    assert refused.value.code == "conversation_already_has_active_response"


def test_instructions_that_the_context_has_no_room_for_fail_it_alone(talk: Talk):
    talk.say("response.create", response=APART)
    talk.tick([{**BUSY, "code": "turn_too_long"}])
    assert talk.told[-1]["response"]["status"] == "failed"
    talk.say("response.create")
    assert talk.kinds()[-1] == "response.created"
