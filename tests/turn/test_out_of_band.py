"""Out-of-band answers: answers to the history that are not added to it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from contract.controls import Controls, ItemControl, OutOfBandControl, Role
from contract.events import Event
from engine.checkpoint import Checkpoint
from engine.engine import Engine
from engine.errors import OptionError
from engine.options import parse_controls
from tests.turn_machine import expect_lengths
from tests.turn_oracle import TurnOracle
from tests.turns import MANUAL, Call, Script, User, converse, event_of, kinds, play, silence

INSTRUCTIONS, NEXT = "Answer yes or no: does the user greet?", "What is the weather like?"


def with_controls(**controls) -> Script:
    """Yield one tick with controls, and silence until the answer has ended."""
    user = User()
    user.note((yield silence(), Controls(**controls)))
    yield from user.until_quiet()


def two_turns(between: Script) -> Script:
    yield from with_controls(message="Hello.")
    yield from between
    yield from with_controls(message=NEXT)


def of_band(call: Call) -> list[Event]:
    return [event for event in call.events if getattr(event, "out_of_band", False) and event.type != "text"]


@pytest.mark.parametrize("speech", [True, False])
def test_out_of_band_answer_equals_transformers_and_leaves_the_history_unchanged(
    engine: Engine, frontend, checkpoint: Checkpoint, speech: bool
):
    """Its instructions are the last system message; tokens and codes of the next turn are as if it had not been."""
    between = with_controls(out_of_band=OutOfBandControl(INSTRUCTIONS, {"speech": speech}))
    call = Call(engine, 1, frontend, two_turns(between), voice="ethan")
    play(call)
    history = engine.conversation(1).history
    engine.close(1)
    oracle = TurnOracle(checkpoint, "ethan")
    oracle.add_user_turn(None, "Hello.")
    first = oracle.answer(40, 80)
    oracle.add_answer([token for token in first.tokens if token != checkpoint.tokenizer.eos_token_id])
    messages = list(oracle.messages)
    oracle.messages.append({"role": "system", "content": INSTRUCTIONS})
    aside = oracle.answer(40, 80)
    oracle.messages = messages
    oracle.add_user_turn(None, NEXT)
    then = oracle.answer(40, 80)
    for received, expected in zip(call.answers, (first, aside, then), strict=True):
        assert received.tokens == expected.tokens
        if received is not call.answers[1] or speech:
            assert torch.equal(torch.cat(received.codes, 1)[:, : expected.codes.shape[1]], expected.codes)
    assert [event.type for event in of_band(call)] == ["answer_started", "answer_done"]
    assert history.turns == [1, 2]
    expect_lengths(history)


@pytest.mark.parametrize("ends", [{}, {"message": "Wait."}, {"out_of_band": OutOfBandControl(cancel=True)}])
def test_sampling_after_an_out_of_band_answer_is_unchanged_however_it_ended(engine: Engine, frontend, ends: dict):
    """Tokens and codes are sampled; the random numbers are those of a conversation without the out-of-band answer."""

    def ended() -> Script:
        user = User()
        user.note((yield silence(), Controls(out_of_band=OutOfBandControl(INSTRUCTIONS))))
        user.note((yield silence(), Controls(**ends)))
        yield from user.until_quiet()

    def plain() -> Script:
        yield from with_controls(message="Wait.") if "message" in ends else with_controls()

    sampled = {"text_temperature": 0.9, "temperature": 0.9, "seed": 5, **MANUAL}
    with_it, without = (converse(engine, frontend, two_turns(between), **sampled) for between in (ended(), plain()))
    assert [event.type for event in of_band(with_it)][-1] == ("interrupted" if ends else "answer_done")
    own = with_it.answers.pop(1)
    assert own.tokens
    for received, expected in zip(with_it.answers, without.answers, strict=True):
        assert received.tokens == expected.tokens
        assert torch.equal(torch.cat(received.codes, 1), torch.cat(expected.codes, 1))


def test_out_of_band_answer_before_any_turn_leaves_nothing(engine: Engine, frontend, checkpoint):
    def script() -> Script:
        yield from with_controls(out_of_band=OutOfBandControl(INSTRUCTIONS))
        yield from with_controls(transcript=True)
        yield from with_controls(message=NEXT)

    call = converse(engine, frontend, script())
    oracle = TurnOracle(checkpoint, "ethan")
    oracle.add_user_turn(None, NEXT)
    assert call.answers[-1].tokens == oracle.answer(40, 80).tokens
    assert event_of(call, "transcript").turns == []


def test_speech_ends_an_out_of_band_answer_and_is_a_whole_turn(talkative: Engine, frontend, questions, interruption):
    """Also if `interrupt` is off."""

    def script() -> Script:
        user = User()
        user.note((yield silence(), Controls(out_of_band=OutOfBandControl(INSTRUCTIONS))))
        yield from user.wait(4)
        yield from user.speak(interruption)
        yield from user.wait(16)

    call = converse(talkative, frontend, script(), interrupt="false", interrupt_after_ms=1000)
    assert kinds(call)[:5] == ["answer_started", "speech_started", "interrupted", "speech_stopped", "answer_started"]
    ended = event_of(call, "interrupted")
    assert (ended.by, ended.out_of_band) == ("speech", True)
    started = [event for event in call.events if event.type == "answer_started"][-1]
    assert started.audio_start_ms <= event_of(call, "speech_started").at_ms


def test_out_of_band_request_is_refused_during_an_answer_and_during_speech(engine: Engine, frontend, questions):
    def script() -> Script:
        user = User()
        user.note((yield silence(), Controls(message="Hello.")))
        user.note((yield silence(), Controls(out_of_band=OutOfBandControl(INSTRUCTIONS))))
        yield from user.until_quiet()
        request = Controls(out_of_band=OutOfBandControl(INSTRUCTIONS))
        yield from user.speak(np.concatenate([questions[0], silence()]), last=request)
        yield from user.wait(6)
        yield from user.until_quiet()

    call = converse(engine, frontend, script())
    assert [(event.type, event.code) for event in of_band(call)] == [("error", "answer_active")] * 2
    assert kinds(call).count("answer_done") == 2


def test_items_wait_for_the_end_of_an_out_of_band_answer_which_cancel_does_not_end(
    engine: Engine, frontend, checkpoint
):
    def script() -> Script:
        user = User()
        user.note((yield silence(), Controls(out_of_band=OutOfBandControl(INSTRUCTIONS))))
        user.note((yield silence(), Controls(items=(ItemControl(Role.USER, NEXT),), cancel=True)))
        yield from user.until_quiet()
        yield from with_controls(respond=True)

    call = converse(engine, frontend, script())
    assert event_of(call, "error").code == "nothing_to_cancel"
    oracle = TurnOracle(checkpoint, "ethan")
    oracle.add_user_turn(None, NEXT)
    assert call.answers[-1].tokens == oracle.answer(40, 80).tokens
    assert kinds(call).count("answer_done") == 2


def test_invalid_out_of_band_options_are_an_error_and_change_no_other_answer(engine: Engine, frontend):
    call = converse(
        engine,
        frontend,
        two_turns(with_controls(out_of_band=OutOfBandControl("", {"answer_tokens": 0, "speech": False}))),
    )
    assert [(event.type, event.code) for event in of_band(call)] == [("error", "bad_control")]
    assert all(torch.cat(received.codes, 1).numel() for received in call.answers)


def test_instructions_longer_than_the_context_are_refused(small: Engine, frontend):
    call = converse(small, frontend, with_controls(out_of_band=OutOfBandControl("Be kind. " * 300)))
    assert [(event.type, event.code) for event in of_band(call)] == [("error", "turn_too_long")]


@pytest.mark.parametrize(
    "value", ["x", "[]", '{"instructions": 1}', '{"cancel": 1}', '{"turn": []}', '{"other": 1}', "null", '"\\ud800"']
)
def test_invalid_out_of_band_value_is_refused_by_name(turn_settings, value: str):
    with pytest.raises(OptionError, match="out_of_band: expected .*got"):
        parse_controls({"out_of_band": value}, turn_settings)


def test_out_of_band_values_are_parsed_and_bounded(turn_settings):
    parsed = parse_controls({"out_of_band": '{"instructions": "Be brief."}'}, turn_settings).out_of_band
    assert parsed == OutOfBandControl("Be brief.")
    with pytest.raises(OptionError, match="out_of_band.instructions: expected at most 20000 characters, got 20001"):
        parse_controls({"out_of_band": '{"instructions": "%s"}' % ("x" * 20_001)}, turn_settings)
