"""Responses of a Realtime conversation: requested, queued, cancelled, and their events in order."""

from __future__ import annotations

import pytest

from contract.controls import Controls
from frontend.realtime.events import RealtimeError
from frontend.realtime.response_state import IllegalTransitionError, ResponseState, transition
from tests.realtime.talk import (
    DETECTED,
    MANUAL,
    TICK_OF_AUDIO,
    Silent,
    Talk,
    answer_done,
    answer_started,
    error,
    interrupted,
    spoken_turn,
    typed,
)

RESPOND, CANCEL = Controls(respond=True), Controls(cancel=True)


def test_response_that_the_users_turn_has_begun_already_is_no_error(talk: Talk):
    """Requested while the user spoke: the turn's own answer came first, and is this response."""
    talk.send("conversation.item.create", item=typed("first"))
    talk.send("response.create")
    talk.tick([answer_started(1)])
    talk.tick([error("answer_active")])
    assert talk.kinds().count("response.created") == 1
    assert "error" not in talk.kinds()


def test_second_response_that_waits_for_a_commit_is_refused(talk: Talk):
    talk.send("session.update", session=MANUAL)
    talk.append()
    talk.send("input_audio_buffer.commit")
    talk.send("response.create", response={"metadata": {"name": "first"}})
    with pytest.raises(RealtimeError) as refused:
        talk.send("response.create", response={"metadata": {"name": "second"}})
    assert refused.value.code == "conversation_already_has_active_response"
    talk.tick([spoken_turn(1)], listen=True, commit=True, turn={"create_response": False})
    (created,) = talk.of_kind("response.created")
    assert created["response"]["metadata"] == {"name": "first"}


def test_response_beside_an_active_one_is_refused(talk: Talk):
    talk.send("response.create")
    with pytest.raises(RealtimeError, match="expected no active response") as refused:
        talk.send("response.create")
    assert refused.value.code == "conversation_already_has_active_response"


def test_response_that_never_began_is_cancelled_once(talk: Talk):
    talk.send("response.create")
    talk.send("response.cancel")
    talk.send("response.cancel")
    assert talk.controls() == [RESPOND, CANCEL], "a second cancel could meet the next answer"
    talk.tick([error("nothing_to_cancel")], cancel=True)
    assert talk.received[-1]["response"]["status"] == "cancelled"


def test_late_refusal_of_a_cancel_does_not_end_the_next_response(talk: Talk):
    """The first answer was complete before its cancel arrived."""
    talk.send("response.create")
    talk.tick([answer_started(1)])
    talk.send("response.cancel")
    talk.tick([answer_done(1)], TICK_OF_AUDIO)
    talk.send("response.create")
    talk.send("response.cancel")
    talk.tick([error("nothing_to_cancel")], cancel=True)
    assert talk.ladder() == ["response.created", "response.done", "response.created"]
    talk.tick([error("nothing_to_cancel")], cancel=True)
    assert talk.received[-1]["response"]["status"] == "cancelled"


def test_cancel_without_a_response_fails_with_the_words_that_stock_clients_ignore(talk: Talk):
    with pytest.raises(RealtimeError) as refused:
        talk.send("response.cancel")
    assert refused.value.code == "response_cancel_not_active"
    assert refused.value.message.startswith("Cancellation failed")


def test_response_ends_before_the_next_begins(talk: Talk):
    """Its last audio comes with the tick in which the next answer starts."""
    talk.send("response.create")
    talk.tick([answer_started(1), answer_done(1, spoken_ms=320)], TICK_OF_AUDIO)
    talk.tick([spoken_turn(2), answer_started(2)], TICK_OF_AUDIO)
    assert talk.ladder() == ["response.created", "response.done", "response.created"]


@pytest.mark.parametrize("event", ["response.cancel", "output_audio_buffer.clear"])
def test_response_that_waits_for_its_commit_can_be_cancelled(talk: Talk, call: Talk, event: str):
    one = call if event == "output_audio_buffer.clear" else talk
    one.send("session.update", session=MANUAL)
    one.loop.run_until_complete(one.conversation.append_audio(bytes(16_000)))
    one.send("input_audio_buffer.commit")
    one.send("response.create", response={"metadata": {"name": "mine"}})
    one.send(event)
    created, done = one.received[-2:]
    assert (created["type"], done["type"]) == ("response.created", "response.done")
    assert created["response"]["id"] == done["response"]["id"]
    assert done["response"]["status_details"] == {"type": "cancelled", "reason": "client_cancelled"}
    assert done["response"]["metadata"] == {"name": "mine"}
    assert done["response"]["usage"]["total_tokens"] == 0, "clients require a usage"
    one.controls()
    one.tick([spoken_turn(1)], listen=True, commit=True, turn={"create_response": False})
    assert one.kinds().count("response.created") == 1
    assert one.controls() == []


def test_queued_response_that_is_cancelled_is_announced_after_the_one_before(talk: Talk):
    """One response at a time: the first is cancelled, a second requested, and cancelled too."""
    talk.send("response.create")
    talk.tick([answer_started(1)])
    talk.send("response.cancel")
    talk.send("response.create", response={"metadata": {"name": "second"}})
    talk.send("response.cancel")
    assert talk.kinds().count("response.created") == 1
    talk.tick([interrupted(1)], cancel=True)
    assert talk.ladder() == ["response.created", "response.done"] * 2
    assert talk.received[-1]["response"]["metadata"] == {"name": "second"}
    assert talk.controls() == [RESPOND, CANCEL]


def test_another_response_may_wait_after_a_queued_one_was_cancelled(talk: Talk):
    talk.send("response.create")
    talk.tick([answer_started(1)])
    talk.send("response.cancel")
    for name in "bc":
        talk.send("response.create", response={"metadata": {"name": name}})
        if name == "b":
            talk.send("response.cancel")
    talk.tick([interrupted(1)], cancel=True)
    done = [event["response"]["status"] for event in talk.of_kind("response.done")]
    assert done == ["cancelled", "cancelled"]
    assert talk.received[-1]["type"] == "response.created"
    assert talk.received[-1]["response"]["metadata"] == {"name": "c"}


def test_clearing_a_silent_loudspeaker_is_confirmed(call: Talk):
    with pytest.raises(RealtimeError, match="expected a response that has been played") as refused:
        call.send("output_audio_buffer.clear")
    assert refused.value.code == "output_audio_buffer_empty"
    call.send("response.create")
    call.send("output_audio_buffer.clear")
    response = call.received[0]["response"]
    assert call.received[-1] == {"type": "output_audio_buffer.cleared", "response_id": response["id"]}


def test_call_plays_nothing_more_of_a_cancelled_response_that_ends_by_itself():
    played: list[bytes] = []

    class Recording(Silent):
        def play(self, response_id: str, pcm: bytes, is_last: bool) -> None:
            played.append(pcm)

    talk = Talk(Recording())
    talk.send("response.create")
    talk.tick([answer_started(1)], TICK_OF_AUDIO)
    talk.send("response.cancel")
    talk.tick([answer_done(1, spoken_ms=640)], TICK_OF_AUDIO)
    talk.tick([], TICK_OF_AUDIO)
    talk.loop.close()
    assert [bool(pcm) for pcm in played] == [True, False, False]
    assert talk.received[-1]["response"]["status"] == "completed"


def test_response_may_have_its_own_length_modality_and_format(talk: Talk):
    audio = {"format": {"type": "audio/pcmu"}}
    response = {"output_modalities": ["text"], "max_output_tokens": 5, "audio": {"output": audio}, "conversation": None}
    talk.send("response.create", response=response)
    about = talk.received[-1]["response"]
    assert (about["output_modalities"], about["max_output_tokens"]) == (["text"], 5)
    assert about["audio"]["output"]["format"]["type"] == "audio/pcmu"
    assert talk.controls() == [Controls(turn={"answer_tokens": 5, "speech": False}, respond=True)]


@pytest.mark.parametrize("changes", [{}, {"output_modalities": ["audio"]}])
def test_session_options_return_when_the_engine_begins_a_response_with_its_own(talk: Talk, changes: dict):
    """Until then they are the response's: the engine answers when the user has stopped."""
    talk.send("response.create", response={"output_modalities": ["text"]})
    talk.controls()
    talk.send("session.update", session={"type": "realtime", **changes})
    assert talk.controls() == []
    talk.tick([answer_started(1)])
    assert talk.controls() == [Controls(turn={"speech": True})]


def test_unrequested_response_has_the_modality_of_the_engine(talk: Talk):
    """The session has changed since, but the engine began the turn with the options before."""
    talk.send("session.update", session={"type": "realtime", "output_modalities": ["text"]})
    talk.tick([spoken_turn(1), answer_started(1)])
    assert talk.of_kind("response.created")[0]["response"]["output_modalities"] == ["audio"]


def test_blank_instructions_are_ignored(talk: Talk):
    talk.send("response.create", response={"instructions": " "})
    talk.send("session.update", session={"type": "realtime", "instructions": "\n"})
    assert talk.controls() == [RESPOND]


def test_answer_may_have_any_length_again(talk: Talk):
    talk.send("response.create")
    talk.tick([answer_started(1)])
    before = talk.conversation.session.turn_options()["answer_tokens"]
    talk.send("session.update", session={"type": "realtime", "max_output_tokens": 50})
    talk.send("session.update", session={**DETECTED, "max_output_tokens": "inf"})
    lengths = [controls.turn["answer_tokens"] for controls in talk.controls() if controls.turn]
    assert lengths == [50, before]


@pytest.mark.parametrize("state", list(ResponseState))
def test_response_cannot_leave_done(state: ResponseState):
    with pytest.raises(IllegalTransitionError, match=f"expected no state next, got {state.name}"):
        transition(ResponseState.DONE, state)
