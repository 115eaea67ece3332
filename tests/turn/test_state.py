"""The event `state`: a snapshot from which another server can continue the conversation."""

from __future__ import annotations

import pytest

from contract.controls import ForgetControl, ItemControl, Part, Role
from contract.events import StateChanged, event_of
from contract.state import Entry, InputState, State
from tests.turn_machine import END, SPEECH, TICK_MS, advance, answer, conversation, prefill_all


def reported(one) -> State | None:
    """Return the state that the current tick reports."""
    one.finish_tick()
    found = [event for event in one.events if isinstance(event, StateChanged)]
    assert all(event is one.events[-1] for event in found), "the last event of the tick"
    return found[0].state if found else None


def state_of(one) -> State:
    """Return the latest state of a conversation, through JSON as a bridge receives it."""
    one.finish_tick()
    changed = StateChanged(at_ms=0, state=one._state_report._latest)
    received = event_of(changed.to_json())
    assert received == changed
    return received.state


def reporting(**turn):
    return conversation(report_state=True, **turn)


def test_state_is_reported_only_if_requested_and_only_when_it_changed():
    one = conversation()
    advance(one)
    assert reported(one) is None
    one = reporting()
    advance(one)
    assert reported(one) == State()
    for _ in range(3):
        advance(one)
        assert reported(one) is None


def test_a_spoken_turn_and_its_answer_are_entries():
    one = reporting()
    advance(one, 3, SPEECH)
    state = state_of(one)
    assert (state.input, state.open_turn, state.open_from_ms, state.speech_from_ms) == (InputState.SPEECH, 1, 0, 0)
    advance(one, 2)
    state = state_of(one)
    audio = Entry(1, "user", "", 0, 1470)
    assert state.entries == (audio,)
    assert (state.answer_due, state.answering, state.input) == (True, None, InputState.IDLE)
    assert state.input_from_ms == 1470
    prefill_all(one)
    answer(one, 1)
    state = state_of(one)
    assert (state.answer_due, state.answering, state.entries) == (False, 1, (audio,))
    one.decoded([40, END, 0, 0], [512, 0, 0, 0])
    state = state_of(one)
    assert state.entries == (audio, Entry(1, "assistant", "30 31 32 33 40"))
    assert (state.answering, state.next_turn) == (None, 2)


def test_typed_text_of_an_open_turn_is_part_of_the_state():
    one = reporting(detection="manual")
    advance(one, listen=True)
    advance(one, message="and this")
    state = state_of(one)
    assert (state.input, state.open_from_ms, state.open_text) == (InputState.PUSHED, 0, "and this")
    advance(one, commit=True)
    assert state_of(one).entries == (Entry(1, "user", "and this", 0, 3 * TICK_MS),)


def test_items_wait_as_pending_and_become_entries():
    one = reporting()
    advance(one, message="hello")
    prefill_all(one)
    advance(one, items=(ItemControl(Role.SYSTEM, "Be brief."), ItemControl(Role.USER, "Quick.")))
    assert state_of(one).pending == (Entry(0, "system", "Be brief."), Entry(0, "user", "Quick."))
    advance(one, cancel=True)
    state = state_of(one)
    assert state.pending == ()
    roles = [(entry.turn, entry.role, entry.text) for entry in state.entries]
    assert roles == [(1, "user", "hello"), (1, "assistant", ""), (2, "system", "Be brief."), (3, "user", "Quick.")]
    advance(one, forget=ForgetControl(3, Part.USER))
    assert len(state_of(one).entries) == 3


def test_an_out_of_band_answer_is_marked_and_leaves_no_entry():
    from contract.controls import OutOfBandControl

    one = reporting()
    advance(one, out_of_band=OutOfBandControl())
    state = state_of(one)
    assert (state.out_of_band, state.answer_due, state.answering) == (True, True, None)
    prefill_all(one)
    state = state_of(one)
    assert (state.out_of_band, state.answer_due, state.answering) == (True, False, 0)
    advance(one, out_of_band=OutOfBandControl(cancel=True))
    assert state_of(one) == State()


def test_a_refused_respond_is_not_due():
    one = reporting()
    advance(one, message="hello")
    prefill_all(one)
    assert advance(one, respond=True) == ["error"]
    one.decoded([END, 0, 0, 0], [512, 0, 0, 0])
    assert not state_of(one).answer_due


def test_a_respond_that_waits_for_the_end_of_speech_is_due():
    one = reporting(create_response=False)
    advance(one, 3, SPEECH)
    assert not state_of(one).answer_due
    advance(one, respond=True, probabilities=SPEECH)
    assert state_of(one).answer_due
    advance(one, cancel=True, probabilities=SPEECH)
    assert not state_of(one).answer_due


def test_a_commit_within_speech_waits_for_silence():
    one = reporting()
    advance(one, 3, SPEECH)
    advance(one, commit=True, probabilities=SPEECH)
    assert state_of(one).awaits_silence
    advance(one)
    assert not state_of(one).awaits_silence


@pytest.mark.parametrize(("detection", "expected"), [("manual", InputState.KEPT), ("server_vad", InputState.SPEECH)])
def test_a_turn_that_detection_left_open_is_kept(detection, expected):
    one = reporting()
    advance(one, 3, SPEECH)
    advance(one, turn={"detection": detection}, probabilities=SPEECH)
    state = state_of(one)
    assert state.input is expected
    assert state.turn_options == {"detection": detection}


def test_options_that_are_refused_are_not_part_of_the_state():
    one = reporting()
    advance(one, turn={"threshold": 7})
    assert state_of(one).turn_options == {}
