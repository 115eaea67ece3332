"""Slots: taken, freed, swept, reset, full; and the isolation of conversations."""

from __future__ import annotations

import pytest
import torch

from engine.checkpoint import Checkpoint
from engine.engine import Engine
from engine.errors import ContextFullError, ConversationError, EngineFullError, OptionError
from engine.tick import TickOutput


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def converse(engine: Engine, key, ticks, **options) -> list[TickOutput]:
    engine.open(key, engine.parse_options(options))
    spoken = [engine.tick({key: log_mel})[key] for log_mel in ticks]
    engine.close(key)
    return spoken


def same(first: list[TickOutput], second: list[TickOutput]) -> bool:
    return all(
        torch.equal(a.codes, b.codes) and a.tokens == b.tokens and a.text == b.text
        for a, b in zip(first, second, strict=True)
    )


def test_reused_slot_holds_no_earlier_state(checkpoint: Checkpoint, settings, ticks):
    engine = Engine(checkpoint, settings.with_values(engine={"slots": 1}))
    first = converse(engine, "first", ticks[:5])
    converse(engine, "other", ticks[8:14], voice="chelsie", system_prompt="Forget all this.")
    assert same(first, converse(engine, "third", ticks[:5]))


def test_closed_conversation_leaves_no_state(engine: Engine, ticks):
    caches = (engine.slots.thinker_cache.buffer, engine.slots.talker_cache.buffer)
    engine.open("gone", engine.parse_options({"system_prompt": "A secret.", "temperature": 1.0}))
    engine.tick({"gone": ticks[0]})
    assert all(cache[:, 0].any() for cache in caches)
    engine.close("gone")
    padding = engine.slots.padding_slot  # slot that the padding rows of a batch write to
    assert not any(cache[:, :padding].any() for cache in caches)
    assert engine.open_conversations == 0


def test_opening_a_live_key_restarts_its_conversation(engine: Engine, ticks):
    expected = converse(engine, "a", ticks[:3])
    engine.open("b", engine.parse_options({}))
    engine.tick({"b": ticks[7]})
    assert same(expected, converse(engine, "b", ticks[:3]))


def test_reset_restarts_a_conversation_with_the_same_options(engine: Engine, ticks):
    expected = converse(engine, "a", ticks[:3], voice="chelsie")
    engine.open("b", engine.parse_options({"voice": "chelsie"}))
    engine.tick({"b": ticks[7]})
    engine.reset("b")
    assert same(expected, [engine.tick({"b": log_mel})["b"] for log_mel in ticks[:3]])


def test_conversation_without_a_free_slot_is_refused(checkpoint: Checkpoint, settings):
    engine = Engine(checkpoint, settings.with_values(engine={"slots": 2}))
    for key in (1, 2):
        engine.open(key, engine.parse_options({}))
    with pytest.raises(EngineFullError, match="all 2 slots hold a conversation"):
        engine.open(3, engine.parse_options({}))
    engine.close(1)
    engine.open(3, engine.parse_options({}))


def test_idle_conversations_are_swept(checkpoint: Checkpoint, settings, ticks):
    clock = Clock()
    engine = Engine(checkpoint, settings.with_values(engine={"idle_timeout_s": 10}), clock=clock)
    engine.open("quiet", engine.parse_options({}))
    clock.now += 6
    engine.open("busy", engine.parse_options({}))
    clock.now += 6
    engine.tick({"busy": ticks[0]})
    assert engine.sweep() == ["quiet"]
    found = engine.tick({"busy": ticks[1], "quiet": ticks[1]})
    assert isinstance(found["busy"], TickOutput)
    assert "conversation 'quiet' is not open" in str(found["quiet"])


def test_full_context_is_an_error_of_its_conversation_only(checkpoint: Checkpoint, settings, ticks):
    engine = Engine(checkpoint, settings.with_values(engine={"context_s": 2, "context_full": "stop"}))
    engine.open("old", engine.parse_options({}))
    for _ in range(7):  # 2 s are 6.25 ticks, rounded up
        assert isinstance(engine.tick({"old": ticks[0]})["old"], TickOutput)
    engine.open("young", engine.parse_options({}))
    found = engine.tick({"old": ticks[0], "young": ticks[0]})
    assert isinstance(found["old"], ContextFullError)
    assert "has filled its context of 2 s (engine.context_s)" in str(found["old"])
    assert isinstance(found["young"], TickOutput)
    assert "conversation 'old' is not open" in str(engine.tick({"old": ticks[0]})["old"]), "an error closes"


def test_failed_computation_closes_the_conversations_of_its_batch(engine: Engine, ticks):
    for key in ("a", "b", "c"):
        engine.open(key, engine.parse_options({}))
    with pytest.raises(RuntimeError):
        engine.tick(
            {"a": ticks[0], "b": ticks[0]._replace(log_mel=ticks[0].log_mel[:, :7])}
        )  # rows of unequal length cannot be stacked
    assert engine.open_conversations == 1
    found = engine.tick({"a": ticks[0], "c": ticks[0]})
    assert isinstance(found["a"], ConversationError)
    assert isinstance(found["c"], TickOutput)


def test_output_of_a_seed_does_not_depend_on_other_conversations(engine: Engine, ticks):
    options = {"temperature": 0.9, "text_temperature": 0.7, "repetition_penalty": 1.05, "seed": 7}
    alone = converse(engine, "alone", ticks[:5], **options)
    assert not same(alone, converse(engine, "other seed", ticks[:5], **{**options, "seed": 8}))
    engine.open("neighbour", engine.parse_options({**options, "seed": 1}))
    engine.open("again", engine.parse_options(options))
    together = [engine.tick({"neighbour": m, "again": m})["again"] for m in ticks[:5]]
    assert same(alone, together)


def test_tiny_temperature_affects_no_conversation(engine: Engine, ticks):
    engine.open("neighbour", engine.parse_options({}))
    engine.open("cold", engine.parse_options({"temperature": 1e-39, "text_temperature": 1e-39}))
    greedy = [engine.tick({"neighbour": m, "cold": m}) for m in ticks[:2]]
    assert all(isinstance(output, TickOutput) for both in greedy for output in both.values())
    assert torch.equal(greedy[0]["cold"].codes[0, 0], greedy[0]["neighbour"].codes[0, 0]), "as cold as greedy"


def test_failed_begin_frees_the_slot(checkpoint: Checkpoint, settings, monkeypatch):
    engine = Engine(checkpoint, settings.with_values(engine={"slots": 1}))
    monkeypatch.setattr(engine.dialect, "begin", lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory")))
    with pytest.raises(RuntimeError, match="out of memory"):
        engine.open(1, engine.parse_options({}))
    monkeypatch.undo()
    engine.open(2, engine.parse_options({}))


def test_voice_and_prompt_change_the_output(engine: Engine, ticks):
    plain = converse(engine, 1, ticks[:4], voice="ethan")
    assert not same(plain, converse(engine, 2, ticks[:4], voice="chelsie"))
    assert not same(plain, converse(engine, 3, ticks[:4], voice="ethan", system_prompt="Shout."))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"voice": "nobody"}, "voice: expected one of aiden, chelsie, ethan, got 'nobody'"),
        ({"voice": 3}, "voice: expected text, got 3"),
        ({"volume": 11}, "unknown option 'volume': expected one of dialect, voice, system_prompt, seed, text_temp"),
        ({"top_k": float("inf")}, "top_k: expected a whole number, got inf"),
        ({"top_k": 2.5}, "top_k: expected a whole number, got 2.5"),
        ({"top_p": "0"}, "top_p: expected a number above 0 and up to 1, got 0.0"),
        ({"seed": True}, "seed: expected a whole number, got True"),
        ({"dialect": "turn"}, "dialect: expected 'sca', got 'turn'"),
    ],
)
def test_error_of_an_invalid_option_names_it(engine: Engine, parameters, message):
    with pytest.raises(OptionError) as error:
        engine.parse_options(parameters)
    assert message in str(error.value)


def test_numbers_may_be_strings(engine: Engine):
    options = engine.parse_options({"temperature": "0.5", "top_k": "20", "seed": "9"})
    assert (options.sampling.temperature, options.sampling.top_k, options.seed) == (0.5, 20, 9)
    assert engine.parse_options({"seed": 2**53 + 1}).seed == 2**53 + 1


def test_prompt_longer_than_its_limit_is_refused_and_takes_no_slot(checkpoint: Checkpoint, settings):
    engine = Engine(checkpoint, settings.with_values(engine={"prompt_positions": 20}))
    with pytest.raises(OptionError, match="expected at most 20 tokens"):
        engine.open(1, engine.parse_options({"system_prompt": "x" * 30}))
    assert engine.open_conversations == 0
