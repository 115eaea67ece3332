"""Answers that are only text, and options that apply from the next answer on."""

from __future__ import annotations

import torch

from contract.controls import Controls
from engine.checkpoint import Checkpoint
from engine.engine import Engine
from tests.turn_oracle import TurnOracle
from tests.turns import Script, User, converse, event_of, silence


def test_text_answer_ends_with_its_text_and_the_next_spoken_answer_is_exact(
    engine: Engine, frontend, checkpoint: Checkpoint
):
    """The tokens equal those of `generate()`, and the next answer's codes are as if this answer had been spoken."""

    def script() -> Script:
        user = User()
        user.note((yield silence(), Controls(message="Hello.")))
        user.note((yield silence(), Controls(turn={"speech": True})))  # the answer was requested before
        yield from user.until_quiet()
        user.note((yield silence(), Controls(message="What is the weather like?")))
        yield from user.until_quiet()

    call = converse(engine, frontend, script(), voice="ethan", speech="false")
    written, spoken = call.answers
    oracle = TurnOracle(checkpoint, "ethan")
    oracle.add_user_turn(None, "Hello.")
    expected = oracle.answer(40, 80)
    assert written.tokens == expected.tokens
    assert not any(codes.numel() for codes in written.codes)
    done = event_of(call, "answer_done")
    assert (done.spoken_ms, done.output_audio_tokens) == (0, 0)
    assert done.output_text_tokens > 0
    oracle.add_answer([token for token in expected.tokens if token != checkpoint.tokenizer.eos_token_id])
    oracle.add_user_turn(None, "What is the weather like?")
    expected = oracle.answer(40, 80)
    assert spoken.tokens == expected.tokens
    assert torch.equal(torch.cat(spoken.codes, 1)[:, : expected.codes.shape[1]], expected.codes)


def test_interrupted_text_answer_keeps_its_text(engine: Engine, frontend):
    def script() -> Script:
        user = User()
        user.note((yield silence(), Controls(message="Hello.")))
        user.note((yield silence(), Controls(cancel=True)))
        yield from user.until_quiet()

    call = converse(engine, frontend, script(), speech="false")
    stopped = event_of(call, "interrupted")
    written = "".join(event.text for event in call.events if event.type == "text")
    assert stopped.heard_text == written != ""


def test_answer_keeps_the_options_of_its_request(engine: Engine, frontend):
    def script() -> Script:
        user = User()
        user.note((yield silence(), Controls(message="Hello.", turn={"answer_tokens": 3})))
        user.note((yield silence(), Controls(turn={"answer_tokens": 40})))
        yield from user.until_quiet()

    call = converse(engine, frontend, script())
    done = event_of(call, "answer_done")
    assert done.output_text_tokens == 3
    assert done.reason == "length"
