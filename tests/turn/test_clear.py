"""The control `clear`, and what becomes of an open turn that is dropped."""

from __future__ import annotations

import pytest

from contract.controls import Controls
from contract.events import AnswerDone, AnswerStarted, Committed, InputDropped
from tests.turn_machine import (
    SILENCE,
    SPEECH,
    TICK,
    TICK_MS,
    advance,
    answer,
    conversation,
    prefill_all,
)


def test_clear_drops_the_detected_turn_and_reports_it():
    one = conversation()
    advance(one, 3, SPEECH)
    assert advance(one, clear=True) == ["input_dropped", "speech_stopped"]
    assert one.events[0] == InputDropped(at_ms=4 * TICK_MS, turn=1)
    assert advance(one, 4) == []
    assert one.next_chunk is None, "the cleared audio is part of no turn"


def test_speech_that_goes_on_after_clear_is_a_new_turn_that_starts_there():
    one = conversation()
    advance(one, 3, SPEECH)
    assert advance(one, probabilities=SPEECH, clear=True) == ["input_dropped", "speech_stopped", "speech_started"]
    advance(one, 2)
    committed = next(event for event in one.events if isinstance(event, Committed))
    assert committed.audio_start_ms == 3 * TICK_MS
    assert committed.turn == 2


def test_padding_of_later_speech_does_not_reach_before_clear():
    one = conversation()
    advance(one, 3)
    advance(one, clear=True, probabilities=SPEECH)
    advance(one, 2)
    committed = next(event for event in one.events if isinstance(event, Committed))
    assert committed.audio_start_ms == 3 * TICK_MS


def test_clear_in_manual_detection_leaves_an_empty_default_turn():
    one = conversation(detection="manual")
    advance(one, 5)
    assert advance(one, clear=True) == []
    advance(one, commit=True)
    committed = next(event for event in one.events if isinstance(event, Committed))
    assert (committed.audio_start_ms, committed.audio_end_ms) == (5 * TICK_MS, 7 * TICK_MS)


def test_clear_of_a_pushed_turn_is_reported_and_its_commit_refers_to_later_audio():
    one = conversation(detection="manual")
    advance(one, 3, listen=True)
    assert advance(one, clear=True) == ["input_dropped"]
    assert advance(one, clear=True) == [], "only the empty default turn is left"


def test_clear_without_input_is_no_error():
    assert advance(conversation(), 2, clear=True) == []


def test_clear_leaves_an_answer_in_progress():
    one = conversation()
    advance(one, message="hello")
    prefill_all(one)
    answer(one, 1)
    assert advance(one, clear=True) == []
    assert one.next_decode()


def test_respond_after_clear_of_a_kept_turn_answers_the_history():
    """Speech, detection off, `clear`, then a request for an answer: nothing waits for a commit that never comes."""
    one = conversation()
    advance(one, 3, SPEECH)
    advance(one, turn={"detection": "manual"})
    assert advance(one, clear=True) == ["input_dropped"]
    advance(one, respond=True)
    prefill_all(one)
    assert [event.turn for event in one.events if isinstance(event, AnswerStarted)] == [one.history.turns[-1]]


def test_respond_whose_turn_is_cleared_answers_the_history():
    one = conversation(create_response=False)
    advance(one, 3, SPEECH)
    advance(one, respond=True, probabilities=SPEECH)
    advance(one, clear=True)
    prefill_all(one)
    assert one.next_decode().is_first


def test_respond_whose_turn_is_cleared_waits_for_speech_that_goes_on():
    one = conversation(create_response=False)
    advance(one, 3, SPEECH)
    advance(one, respond=True, probabilities=SPEECH)
    assert advance(one, clear=True, probabilities=SPEECH) == ["input_dropped", "speech_stopped", "speech_started"]
    assert one.next_decode() is None
    advance(one, 2, SILENCE)
    prefill_all(one)
    assert one.next_decode().is_first


def test_respond_whose_turn_a_message_replaces_is_answered_once():
    one = conversation()
    advance(one, listen=True)
    advance(one, respond=True)
    assert advance(one, message="hello") == ["input_dropped"]
    prefill_all(one)
    one.decoded([2, 0, 0, 0], [512, 0, 0, 0])
    assert any(isinstance(event, AnswerDone) for event in one.events)
    for _ in range(5):
        one.advance(TICK, Controls(), SILENCE)
        assert one.next_chunk is None
        assert one.events == []


@pytest.mark.parametrize("control", ["listen", "clear"])
def test_input_dropped_names_the_open_turn(control):
    one = conversation()
    advance(one, 3, SPEECH)
    advance(one, **{control: True})
    assert one.events[0] == InputDropped(at_ms=4 * TICK_MS, turn=1)
