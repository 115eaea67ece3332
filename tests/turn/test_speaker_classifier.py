"""Labels of the speaker, `emotion` and `language`, are the model's answers."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from contract.controls import Controls, ForgetControl, Part
from engine.checkpoint import Checkpoint
from engine.engine import Engine
from engine.errors import OptionError
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
    silence,
)


def test_label_probabilities_equal_transformers(engine: Engine, frontend, checkpoint, questions):
    call = converse(
        engine, frontend, asking(questions[0][: 9 * TICK], 6), emotion="all", language="Korean, English", **MANUAL
    )
    plain = converse(engine, frontend, asking(questions[0][: 9 * TICK], 6), **MANUAL)
    assert all(torch.equal(a.codes, b.codes) for a, b in zip(call.spoken, plain.spoken, strict=True))
    assert [a.tokens for a in call.spoken] == [b.tokens for b in plain.spoken], "equal to the last bit"
    assert not any(event.type in ("emotion", "language") for event in plain.events)
    for name, labels in (("emotion", engine.settings.turn.labels("emotion")), ("language", ("Korean", "English"))):
        event = event_of(call, name)
        assert event.at_ms > event_of(call, "answer_started").at_ms, "not on the answer's critical path"
        expected = label_probabilities(checkpoint, call, name, labels)
        assert event.label == max(expected, key=lambda label: expected[label])
        assert event.probability == pytest.approx(expected[event.label], abs=2e-4)


@pytest.mark.parametrize(
    "controls",
    [
        Controls(cancel=True, forget=ForgetControl(1, Part.USER)),
        Controls(turn={"emotion": "off"}),
    ],
)
def test_question_about_removed_audio_is_dropped(engine: Engine, frontend, questions, controls):
    """The question of another conversation is answered."""

    def script(then: Controls) -> Script:
        user = User()
        yield from user.speak(questions[0][: 4 * TICK], last=Controls(commit=True))
        user.note((yield silence(), then))
        yield from user.until_quiet()

    calls = {
        key: Call(engine, key, frontend, script(then), emotion="all", **MANUAL)
        for key, then in (("changed", controls), ("other", Controls()))
    }
    for _ in range(10):
        for key, output in engine.tick({key: call.next_input() for key, call in calls.items()}).items():
            calls[key].receive(output)
    for key in calls:
        engine.close(key)
    assert "emotion" not in kinds(calls["changed"])
    assert "emotion" in kinds(calls["other"])


def test_labels_that_are_too_long_are_refused_in_mid_conversation(checkpoint, turn_settings, frontend, questions):
    labels = ", ".join(f"a rather long name of a mood {i}" for i in range(20))
    engine = Engine(checkpoint, turn_settings.with_values(turn={"emotion_labels": labels}))

    def script() -> Script:
        yield silence(), Controls(turn={"emotion": "all"})
        yield from asking(questions[0][: 4 * TICK])

    call = converse(engine, frontend, script(), **MANUAL)
    assert "use fewer labels" in event_of(call, "error").message
    assert kinds(call)[1:] == ["answer_started", "answer_done"]


def label_probabilities(checkpoint: Checkpoint, call: Call, name: str, labels: tuple[str, ...]) -> dict[str, float]:
    """Return the probabilities by transformers, with a pass over the whole prompt for each prefix of a label."""
    from engine.turn.speaker_classifier import QUESTIONS

    oracle = TurnOracle(checkpoint, "ethan")
    oracle.add_user_turn(call.sound(call.answers[0]))
    oracle.add_user_turn(None, QUESTIONS[name].format(labels=", ".join(labels)))
    prompt, end = oracle.prompt(), checkpoint.tokenizer.eos_token_id
    spellings = {label: [*checkpoint.tokenizer.encode(label), end] for label in labels}
    found = {}
    for label, spelling in spellings.items():
        probability = 1.0
        for length, token in enumerate(spelling):
            ids = torch.tensor([[*prompt, *spelling[:length]]])
            allowed = sorted({s[length] for s in spellings.values() if s[:length] == spelling[:length]})
            if len(allowed) == 1:
                continue
            with torch.no_grad():
                logits = checkpoint.model.thinker(
                    input_ids=ids, attention_mask=torch.ones_like(ids), **oracle.features()
                ).logits[0, -1]
            probability *= float(logits[allowed].softmax(0)[allowed.index(token)])
        found[label] = probability
    assert sum(found.values()) == pytest.approx(1, abs=1e-3)
    return found


def test_labels_that_are_too_long_are_refused_at_start(checkpoint, turn_settings):
    labels = ", ".join(f"a rather long name of a mood {i}" for i in range(20))
    turn = dataclasses.replace(turn_settings.turn, emotion_labels=labels)
    engine = Engine(checkpoint, dataclasses.replace(turn_settings, turn=turn))
    with pytest.raises(OptionError, match="use fewer labels"):
        engine.open(1, engine.parse_options({"emotion": "all"}))
