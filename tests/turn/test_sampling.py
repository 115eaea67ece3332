"""A seed gives the same output in any batch."""

from __future__ import annotations

import torch

from engine.engine import Engine
from tests.conftest import note_uniforms
from tests.turns import (
    MANUAL,
    TICK,
    Call,
    asking,
    converse,
)


def test_seed_gives_the_same_output_in_any_batch(engine: Engine, frontend, questions):
    options = {**MANUAL, "temperature": 0.9, "text_temperature": 0.8, "seed": 3}
    alone = converse(engine, frontend, asking(questions[0][: 6 * TICK]), **options)
    again = converse(engine, frontend, asking(questions[0][: 6 * TICK]), **options)
    other = converse(engine, frontend, asking(questions[0][: 6 * TICK]), **{**options, "seed": 4})
    assert all(torch.equal(a.codes, b.codes) for a, b in zip(alone.spoken, again.spoken, strict=True))
    assert any(not torch.equal(a.codes, b.codes) for a, b in zip(alone.spoken, other.spoken, strict=True))

    calls = [
        Call(engine, key, frontend, asking(questions[0][: (6 + 3 * key) * TICK]), **{**options, "seed": 3 + key})
        for key in range(3)
    ]
    for _ in range(30):
        for key, spoken in engine.tick({call.key: call.next_input() for call in calls}).items():
            calls[key].receive(spoken)
    for key in range(3):
        engine.close(key)
    pairs = list(zip(alone.spoken[:30], calls[0].spoken, strict=True))
    assert all(torch.equal(a.codes, b.codes) and a.tokens == b.tokens for a, b in pairs)


def test_no_random_number_is_drawn_twice(engine: Engine, frontend, questions, monkeypatch):
    drawn = note_uniforms(engine, monkeypatch)
    converse(
        engine, frontend, asking(questions[0][: 6 * TICK], 12), temperature=0.9, text_temperature=0.8, seed=1, **MANUAL
    )
    assert len(drawn) > 17 * 8
    assert len(set(drawn)) == len(drawn)
