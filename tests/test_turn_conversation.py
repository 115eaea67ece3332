"""The state machine of a conversation in the dialect `turn`: audio and controls in, actions and events out."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from contract.controls import CONTROLS, ForgetControl, ItemControl, Part, Role
from engine.turn.history import UserAudio, UserText
from tests.conftest import ROOT
from tests.turn_machine import (
    CONFIG,
    END,
    SILENCE,
    SPEECH,
    TICK_MS,
    advance,
    answer,
    conversation,
    entries_of,
    expect_lengths,
    prefill_all,
)


def test_speech_that_begins_on_a_tick_border_interrupts_at_the_end_of_the_tick():
    """The speech begins with the first window of the sixth tick."""
    one = conversation()
    advance(one, 3, SPEECH)
    advance(one, commit=True, probabilities=SPEECH)
    prefill_all(one)
    answer(one, 1)
    assert advance(one, 1, SILENCE) == []
    assert advance(one, 1, SPEECH) == ["speech_started", "interrupted"]
    started, interrupted = one.events
    assert started.at_ms == 5 * TICK_MS, "the border of the tick"
    assert interrupted.at_ms == 6 * TICK_MS
    assert interrupted.heard_ms == 320


def test_windows_are_queued_if_they_are_complete_and_not_the_last():
    one = conversation(detection="manual")
    advance(one, 25)  # 800 frames: this window may be the last
    assert one.next_chunk is None
    advance(one)
    assert one.next_chunk.clip == (0, 0, 800, None)
    assert prefill_all(one) == [103], "the turn's opening, and 100 audio tokens"
    advance(one, commit=True)
    assert one.next_chunk.clip == (0, 800, 864, 864)
    assert one.next_chunk.clip.ends_turn


def test_turn_of_exactly_one_window_is_one_clip():
    one = conversation(detection="manual")
    advance(one, 25, commit=True)
    assert one.next_chunk.clip == (0, 0, 800, 800)


def test_answer_begins_when_its_turn_is_prefilled():
    """The prefill budget of a tick may be used up by other conversations."""
    one = conversation(detection="manual")
    assert advance(one, 5, commit=True) == []
    assert one.next_decode() is None
    assert advance(one, 2) == []
    assert one.waited_ticks == 2
    prefill_all(one)
    assert [event.type for event in one.events] == ["answer_started"]
    assert one.next_decode().is_first


def test_answer_that_is_due_can_be_cancelled():
    """The turn stays in the history, without an answer."""
    one = conversation(detection="manual")
    advance(one, 5, commit=True)
    assert advance(one, cancel=True) == ["interrupted"]
    assert one.events[0].heard_ms == 0
    assert prefill_all(one) == [3 + 20 + 1 + 2], "no token of an answer"
    assert one.next_decode() is None
    assert entries_of(one.history) == [UserAudio]


def test_respond_that_waits_for_the_end_of_speech_can_be_cancelled():
    one = conversation(create_response=False)
    advance(one, 3, SPEECH)
    assert advance(one, respond=True, probabilities=SPEECH) == []
    assert advance(one, cancel=True, probabilities=SPEECH) == ["error"]
    assert one.events[0].code == "nothing_to_cancel"
    assert advance(one, 4)[-1] == "speech_stopped"
    prefill_all(one)
    assert one.next_decode() is None


def test_respond_whose_turn_is_dropped_answers_the_history():
    one = conversation(create_response=False)
    advance(one, 3, SPEECH)
    advance(one, respond=True, probabilities=SPEECH)
    advance(one, turn={"detection": "manual"})
    assert one.answers.current
    prefill_all(one)
    assert one.next_decode().is_first


def test_positions_follow_what_was_prefilled_and_decoded():
    one = conversation(detection="manual")
    advance(one, 5, commit=True)
    prefill_all(one)
    user = 3 + 20 + 1 + 2
    decode = one.next_decode()
    assert (decode.thinker_start, decode.talker_start) == (user + 3, user + 3 + 5)
    one.decoded([30, 31, 32, 33], [1, 2, 3, 4])
    decode = one.next_decode()
    assert (decode.thinker_start, decode.talker_start) == (user + 7, user + 12)
    assert (decode.text_rng_offset, decode.codec_rng_offset) == (2**40 + 4, 64)
    one.decoded([30, END, 40, 41], [1, 512, 5, 6])
    assert one.events[-1].type == "answer_done"
    assert one.events[-1].spoken_ms == 5 * 80
    assert one.thinker_length == user + 3 + 4 + 2
    assert one.history.talker_length == user, "the talker keeps only the user's entries"


def test_text_answer_decodes_no_frames():
    one = conversation(detection="manual", speech=False)
    advance(one, 5, commit=True)
    prefill_all(one)
    decode = one.next_decode()
    assert (decode.emits_text, decode.emits_frames, decode.is_first) == (True, False, False)
    one.decoded([30, END, 40, 41], [])
    assert one.events[-1].type == "answer_done"


def test_windows_are_taken_back_to_be_prefilled_again():
    one = conversation(detection="manual")
    advance(one, 60)
    first = prefill_all(one)
    assert first == [103, 100]
    advance(one, commit=True)
    length = one.thinker_length
    one.prefill_again(800)
    assert one.thinker_length == length - 100
    assert one.next_chunk.clip == (0, 800, 1600, 1952), "the floor is now the whole turn's"
    assert len(prefill_all(one)) == 2
    assert one.thinker_length == 103 + 100 + 44 + 1 + 2 + 3


def test_windows_still_queued_at_the_end_of_the_turn_get_its_floor():
    one = conversation(detection="manual")
    advance(one, 60)
    advance(one, commit=True)
    clips = [one.next_prefill().chunk.clip for _ in range(3)]
    assert [clip.turn_end for clip in clips] == [1952, 1952, 1952]


def test_oldest_turn_is_evicted_for_the_present_one():
    one = conversation(replace(CONFIG, thinker_positions=120, talker_positions=110), detection="manual")
    for _ in range(4):
        advance(one, 5, commit=True)
        prefill = one.next_prefill()
        answer(one, 1)
        one.decoded([END, 0, 0, 0], [512, 0, 0, 0])
    thinker, talker = prefill.evictions[-1]
    assert thinker.kept == talker.kept == 0
    assert thinker.length - thinker.leaving + len(prefill.chunk.closing) <= 120
    assert len(one.history.turns) < 4
    expect_lengths(one.history)


def test_frames_are_needed_until_their_turn_is_prefilled():
    one = conversation(detection="manual")
    advance(one, 40, commit=True)
    advance(one, 3)
    assert one.oldest_frame == 0, "a window is still queued"
    prefill_all(one)
    advance(one, 100)
    assert one.oldest_frame > 4000


@pytest.mark.parametrize("control", ["commit", "cancel"])
def test_commit_and_cancel_without_an_object_are_errors(control):
    one = conversation()
    assert advance(one, **{control: True}) == ["error"]
    assert one.events[0].code == f"nothing_to_{control}"


def test_turn_that_does_not_fit_leaves_the_next_one_unchanged():
    """Two messages while prefill is late: the first is dropped, the second answered."""
    config = replace(CONFIG, thinker_positions=330, talker_positions=320, stops_when_full=True)
    one = conversation(config, detection="manual")
    advance(one, message="x" * 150)
    prefill_all(one)
    one.decoded([END, 0, 0, 0], [512, 0, 0, 0])
    advance(one, message="x" * 180)
    assert advance(one, message="hello") == ["interrupted"]
    prefill_all(one)
    assert [event.type for event in one.events] == ["interrupted", "committed", "error"]
    prefill_all(one)
    assert [event.type for event in one.events] == ["interrupted", "committed", "error", "answer_started"]
    assert [e.text for e in one.history.entries if isinstance(e, UserText)] == ["x" * 150, "hello"]
    expect_lengths(one.history)


def test_end_of_an_answer_is_prefilled_once():
    """Also if the next turn is dropped while its chunk waits."""
    one = conversation(detection="manual")
    advance(one, message="first")
    prefill_all(one)
    one.decoded([END, 0, 0, 0], [512, 0, 0, 0])
    advance(one, message="second")
    advance(one, cancel=True)
    advance(one, listen=True)
    advance(one, commit=True)
    closings = []
    while prefill := one.next_prefill():
        closings.append(prefill.chunk.closing)
    assert closings == [[14], []], "before the second turn, once"


def test_message_joins_a_pushed_turn():
    one = conversation(detection="manual")
    advance(one, 3, listen=True)
    advance(one, message="and this")
    advance(one, 2, commit=True)
    prefill_all(one)
    user = one.history.entries[0]
    assert isinstance(user, UserAudio)
    assert user.typed == "and this"
    assert user.span_ms == (2 * TICK_MS, 6 * TICK_MS)


def test_speech_that_stops_and_starts_within_a_tick_is_reported_twice():
    one = conversation(silence_duration_ms=96)
    advance(one, 2, SPEECH)
    kinds = advance(one, 1, [*[0.0] * 4, *[0.9] * 6])
    assert kinds[:2] == ["speech_stopped", "speech_started"]


def test_speech_that_ends_before_a_pushed_turn_begins_does_not_end_the_turn():
    one = conversation(silence_duration_ms=96)
    probabilities = [*[0.0] * 3, *[0.9] * 3, *[0.0] * 4]
    assert advance(one, probabilities=probabilities, listen=TICK_MS) == ["speech_started", "speech_stopped"]
    advance(one, 2)
    advance(one, commit=True)
    (committed,) = one.events
    assert (committed.audio_start_ms, committed.audio_end_ms) == (TICK_MS, 4 * TICK_MS)


def test_message_whose_other_part_is_forgotten_keeps_its_text():
    one = conversation()
    advance(one, items=(ItemControl(Role.SYSTEM, "Be brief."),))
    prefill_all(one)
    assert advance(one, forget=ForgetControl(1, Part.USER)) == ["forgotten"]
    assert list(one.history.transcript()) == [{"role": "system", "text": "Be brief."}]
    assert advance(one, forget=ForgetControl(1, Part.ANSWER)) == ["forgotten"]
    assert list(one.history.transcript()) == []
    expect_lengths(one.history)


def test_state_machine_imports_no_torch():
    """Checked in a fresh process: every module of the host side."""
    device_side = {"__init__", "dialect", "plan", "prefill", "speaker_classifier"}
    modules = {path.stem for path in (ROOT / "engine" / "turn").glob("*.py")} - device_side
    program = f"from engine.turn import {', '.join(sorted(modules))}; import sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


def test_controls_are_applied_in_the_order_of_their_fields():
    """`reset` begins another conversation before its tick."""
    controls = conversation().controls
    assert ("reset", *controls.before_audio, *controls.after_audio) == CONTROLS
