"""One conversation's failure is its own."""

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


def test_one_that_fails_by_itself_fails_alone(engine: Engine, frontend, questions, monkeypatch):
    good = Call(engine, "good", frontend, asking(questions[0][: 3 * TICK]), **MANUAL)
    bad = Call(engine, "bad", frontend, asking(questions[0][: 3 * TICK]), **MANUAL)
    monkeypatch.setattr(engine.conversation("bad"), "advance", lambda *_: (_ for _ in ()).throw(ValueError("broken")))
    said = engine.tick({"good": good.hear(), "bad": bad.hear()})
    assert isinstance(said["good"], TickOutput)
    assert "the conversation failed and is closed: ValueError('broken')" in str(said["bad"])
    assert engine.open_conversations == 1
    engine.close("good")


@pytest.mark.parametrize("step", ["next_prefill", "next_decode", "decoded", "take_question"])
def test_whatever_fails_in_a_conversation_fails_it_alone(engine: Engine, frontend, questions, monkeypatch, step):
    calls = {
        key: Call(engine, key, frontend, asking(questions[0][: 6 * TICK]), emotion="all", **MANUAL)
        for key in ("good", "bad")
    }
    monkeypatch.setattr(engine.conversation("bad"), step, lambda *_: (_ for _ in ()).throw(ValueError("broken")))
    failed = None
    for _ in range(8):
        going = {key: call.hear() for key, call in calls.items() if key == "good" or failed is None}
        outputs = engine.tick(going)
        calls["good"].take(outputs["good"])
        if isinstance(outputs.get("bad"), Exception):
            failed = outputs["bad"]
        elif failed is None:
            calls["bad"].take(outputs["bad"])
    assert "the conversation failed and is closed: ValueError('broken')" in str(failed)
    assert engine.open_conversations == 1
    engine.close("good")
    assert calls["good"].answers, "the other one was answered"
