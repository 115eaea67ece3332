"""Prefill: its content and its time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from contract.controls import Controls
from engine.checkpoint import Checkpoint
from engine.engine import Engine
from tests.turn_oracle import TurnOracle
from tests.turns import (
    MANUAL,
    TICK,
    Call,
    Script,
    User,
    asking,
    converse,
    event_of,
    kinds,
    lengthened,
    loudest_first,
    play,
    silence,
)


def test_long_turn_is_prefilled_while_the_user_speaks(engine: Engine, frontend, checkpoint, questions, turn_settings):
    """A turn of 27 s has three windows of 8 s, prefilled before its end, and a last one, prefilled at its end."""
    long = loudest_first(np.concatenate([*questions, *questions])[: 84 * TICK])
    prefilled: list[int] = []
    call = Call(engine, "long", frontend, asking(long), **MANUAL)
    going = True
    while going:
        before = engine.thinker_length("long")
        going = call.receive(engine.tick({"long": call.next_input()})["long"])
        if engine.thinker_length("long") - before > 30:
            prefilled.append(len(call.spoken) - 1)
    engine.close("long")
    assert prefilled == [25, 50, 75, 83], "one tick after 800, 1600 and 2400 frames, and the last tick"
    oracle = TurnOracle(checkpoint, "ethan")
    oracle.add_user_turn(call.sound(call.answers[0]))
    expected = oracle.answer(turn_settings.turn.answer_tokens, turn_settings.turn.answer_frames)
    assert call.answers[0].tokens == expected.tokens
    assert torch.equal(torch.cat(call.answers[0].codes, dim=1), expected.codes[:, : 4 * 31])


@pytest.mark.parametrize("ticks", [1, 3, 4, 6, 24, 25, 26])
def test_hidden_state_of_a_turn_of_any_length_equals_transformers(engine: Engine, frontend, checkpoint, pcm, ticks):
    """The lengths are around one second, and around a window of the encoder."""
    sound = np.concatenate([pcm] * 2)[: ticks * TICK]
    call = Call(engine, 1, frontend, asking(sound, then=0), **MANUAL)
    decode = engine.dialect.decode
    hidden = []

    def noting(plan) -> None:
        hidden.append(engine.slots.thinker_hidden[0].clone())
        decode(plan)

    engine.dialect.decode = noting
    try:
        play(call)
    finally:
        del engine.dialect.decode
    engine.close(1)
    oracle = TurnOracle(checkpoint, "ethan")
    oracle.add_user_turn(lengthened(sound))
    ids = torch.tensor([oracle.prompt()])
    with torch.no_grad():
        expected = checkpoint.model.thinker(
            input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True, **oracle.features()
        ).hidden_states[-1][0, -1]
    assert (hidden[-1] - expected).abs().max() < 1e-4, "a few roundings of float32, of values around 1"


def test_tenth_turn_prefills_no_more_than_the_first(engine: Engine, frontend, questions):
    def script() -> Script:
        user = User()
        for _ in range(10):
            yield from user.speak(questions[0][: 9 * TICK], Controls(listen=True), Controls(commit=True))
            yield from user.until_quiet()

    call = Call(engine, 1, frontend, script(), **MANUAL)
    prefilled: list[int] = []
    going = True
    while going:
        before = engine.thinker_length(1)
        output = engine.tick({1: call.next_input()})[1]
        if any(event.type == "answer_started" for event in output.events):
            prefilled.append(engine.thinker_length(1) - before)
        going = call.receive(output)
    engine.close(1)
    assert len(prefilled) == 10
    assert max(prefilled[1:]) <= prefilled[0] + 2, "the end of the previous answer, and the turn"


def test_long_system_prompt_takes_a_part_of_the_context(small: Engine, frontend, checkpoint: Checkpoint):
    """A prompt longer than `engine.prompt_positions` gives exact answers and leaves less room for turns."""
    prompt = "You take orders and are kind to everybody. " * 2
    chat = small.dialect.chat
    assert small.settings.engine.prompt_positions < len(chat.system(prompt)) < 120
    questions = ("Hello.", "What is the weather like?", "Go on.", "And then?")

    def script() -> Script:
        user = User()
        for question in questions:
            user.note((yield silence(), Controls(message=question)))
            yield from user.until_quiet()

    call = converse(small, frontend, script(), system_prompt=prompt)
    oracle = TurnOracle(checkpoint, "ethan", prompt)
    oracle.add_user_turn(None, questions[0])
    assert call.answers[0].tokens == oracle.answer(40, 80).tokens
    assert kinds(call).count("answer_done") == len(questions)
    assert "turns_dropped" in kinds(call)


def test_message_without_room_after_the_prompt_is_refused(small: Engine, frontend):
    prompt = "You take orders and are kind to everybody. " * 2

    def script() -> Script:
        yield silence(), Controls(message=message)
        yield silence(), Controls()

    message = "x"
    while len(small.dialect.chat.typed(message)) < 125:
        message += "x"
    assert kinds(converse(small, frontend, script())) == ["answer_started"]
    call = converse(small, frontend, script(), system_prompt=prompt)
    assert event_of(call, "error").code == "turn_too_long"
    assert kinds(call) == ["error"]
