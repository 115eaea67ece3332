"""The failure of one conversation does not affect others."""

from __future__ import annotations

import pytest

from engine.engine import Engine
from engine.tick import TickOutput
from tests.turns import (
    MANUAL,
    TICK,
    Call,
    asking,
)


def test_conversation_that_fails_in_advance_fails_without_others(engine: Engine, frontend, questions, monkeypatch):
    good = Call(engine, "good", frontend, asking(questions[0][: 3 * TICK]), **MANUAL)
    bad = Call(engine, "bad", frontend, asking(questions[0][: 3 * TICK]), **MANUAL)
    monkeypatch.setattr(engine.conversation("bad"), "advance", lambda *_: (_ for _ in ()).throw(ValueError("broken")))
    outputs = engine.tick({"good": good.next_input(), "bad": bad.next_input()})
    assert isinstance(outputs["good"], TickOutput)
    assert "the conversation failed and is closed: ValueError('broken')" in str(outputs["bad"])
    assert engine.open_conversations == 1
    engine.close("good")


@pytest.mark.parametrize("step", ["next_prefill", "next_decode", "decoded", "take_question"])
def test_conversation_that_fails_in_any_step_fails_without_others(
    engine: Engine, frontend, questions, monkeypatch, step
):
    calls = {
        key: Call(engine, key, frontend, asking(questions[0][: 6 * TICK]), emotion="all", **MANUAL)
        for key in ("good", "bad")
    }
    monkeypatch.setattr(engine.conversation("bad"), step, lambda *_: (_ for _ in ()).throw(ValueError("broken")))
    failed = None
    for _ in range(8):
        going = {key: call.next_input() for key, call in calls.items() if key == "good" or failed is None}
        outputs = engine.tick(going)
        calls["good"].receive(outputs["good"])
        if isinstance(outputs.get("bad"), Exception):
            failed = outputs["bad"]
        elif failed is None:
            calls["bad"].receive(outputs["bad"])
    assert "the conversation failed and is closed: ValueError('broken')" in str(failed)
    assert engine.open_conversations == 1
    engine.close("good")
    assert calls["good"].answers, "the other conversation has its answer"
