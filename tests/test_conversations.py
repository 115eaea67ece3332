"""Slots: taken, given back, swept, reset, full; and nothing of one conversation in another."""

from __future__ import annotations

import pytest
import torch

from engine.checkpoint import Checkpoint
from engine.conversation import Spoken
from engine.engine import Engine
from engine.errors import ContextFullError, ConversationError, OptionError, SlotsFullError


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def converse(engine: Engine, key, log_mels, **options) -> list[Spoken]:
    engine.open(key, engine.parse_options(options))
    spoken = [engine.tick({key: log_mel})[key] for log_mel in log_mels]
    engine.close(key)
    return spoken


def same(first: list[Spoken], second: list[Spoken]) -> bool:
    return all(
        torch.equal(a.codes, b.codes) and a.tokens == b.tokens and a.text == b.text
        for a, b in zip(first, second, strict=True)
    )


def test_a_slot_used_again_remembers_nothing(checkpoint: Checkpoint, settings, log_mels):
    engine = Engine(checkpoint, settings.with_values(engine={"slots": 1}))
    first = converse(engine, "first", log_mels[:5])
    converse(engine, "other", log_mels[8:14], voice="chelsie", system_prompt="Forget all this.")
    assert same(first, converse(engine, "third", log_mels[:5]))


def test_a_closed_conversation_leaves_no_trace(engine: Engine, log_mels):
    decoders = (engine.dialect.thinker.decoder, engine.dialect.talker.decoder)
    engine.open("gone", engine.parse_options({"system_prompt": "A secret.", "temperature": 1.0}))
    engine.tick({"gone": log_mels[0]})
    assert all(decoder._cache[:, 0].any() for decoder in decoders)
    engine.close("gone")
    spare = engine.settings.engine.slots  # holds what padding computes
    assert not any(decoder._cache[:, :spare].any() for decoder in decoders)
    assert not engine.dialect.speaker.sampler._spoken[:spare].any()
    assert not engine.dialect.speaker.sampler._seeds[:spare].any()
    assert engine.open_conversations == 0


def test_opening_a_live_key_begins_anew(engine: Engine, log_mels):
    expected = converse(engine, "a", log_mels[:3])
    engine.open("b", engine.parse_options({}))
    engine.tick({"b": log_mels[7]})
    assert same(expected, converse(engine, "b", log_mels[:3]))


def test_reset_begins_anew_with_the_same_options(engine: Engine, log_mels):
    expected = converse(engine, "a", log_mels[:3], voice="chelsie")
    engine.open("b", engine.parse_options({"voice": "chelsie"}))
    engine.tick({"b": log_mels[7]})
    engine.reset("b")
    assert same(expected, [engine.tick({"b": log_mel})["b"] for log_mel in log_mels[:3]])


def test_one_conversation_too_many_is_refused_at_once(checkpoint: Checkpoint, settings):
    engine = Engine(checkpoint, settings.with_values(engine={"slots": 2}))
    for key in (1, 2):
        engine.open(key, engine.parse_options({}))
    with pytest.raises(SlotsFullError, match="all 2 slots hold a conversation"):
        engine.open(3, engine.parse_options({}))
    engine.close(1)
    engine.open(3, engine.parse_options({}))


def test_idle_conversations_are_swept(checkpoint: Checkpoint, settings, log_mels):
    clock = Clock()
    engine = Engine(checkpoint, settings.with_values(engine={"idle_timeout_s": 10}), clock)
    engine.open("quiet", engine.parse_options({}))
    clock.now += 6
    engine.open("busy", engine.parse_options({}))
    clock.now += 6
    engine.tick({"busy": log_mels[0]})
    assert engine.sweep() == ["quiet"]
    found = engine.tick({"busy": log_mels[1], "quiet": log_mels[1]})
    assert isinstance(found["busy"], Spoken)
    assert "conversation 'quiet' is not open" in str(found["quiet"])


def test_a_full_context_is_an_error_for_that_conversation_alone(checkpoint: Checkpoint, settings, log_mels):
    engine = Engine(checkpoint, settings.with_values(engine={"context_s": 2, "context_full": "stop"}))
    engine.open("old", engine.parse_options({}))
    for _ in range(7):  # 2 s are 6.25 ticks; a begun one counts
        assert isinstance(engine.tick({"old": log_mels[0]})["old"], Spoken)
    engine.open("young", engine.parse_options({}))
    found = engine.tick({"old": log_mels[0], "young": log_mels[0]})
    assert isinstance(found["old"], ContextFullError)
    assert "has filled its context of 2 s (engine.context_s)" in str(found["old"])
    assert isinstance(found["young"], Spoken)
    engine.reset("old")
    assert isinstance(engine.tick({"old": log_mels[0]})["old"], Spoken)


def test_a_failure_in_the_computation_closes_those_in_it(engine: Engine, log_mels):
    for key in ("a", "b", "c"):
        engine.open(key, engine.parse_options({}))
    with pytest.raises(RuntimeError):
        engine.tick({"a": log_mels[0], "b": log_mels[0][:, :7]})  # rows of unequal length cannot be stacked
    assert engine.open_conversations == 1
    found = engine.tick({"a": log_mels[0], "c": log_mels[0]})
    assert isinstance(found["a"], ConversationError)
    assert isinstance(found["c"], Spoken)


def test_a_seed_gives_the_same_in_any_company(engine: Engine, log_mels):
    options = {"temperature": 0.9, "text_temperature": 0.7, "repetition_penalty": 1.05, "seed": 7}
    alone = converse(engine, "alone", log_mels[:5], **options)
    assert not same(alone, converse(engine, "other seed", log_mels[:5], **{**options, "seed": 8}))
    engine.open("neighbour", engine.parse_options({**options, "seed": 1}))
    engine.open("again", engine.parse_options(options))
    together = [engine.tick({"neighbour": m, "again": m})["again"] for m in log_mels[:5]]
    assert same(alone, together)


def test_no_temperature_however_low_harms_anybody(engine: Engine, log_mels):
    engine.open("neighbour", engine.parse_options({}))
    engine.open("cold", engine.parse_options({"temperature": 1e-39, "text_temperature": 1e-39}))
    greedy = [engine.tick({"neighbour": m, "cold": m}) for m in log_mels[:2]]
    assert all(isinstance(said, Spoken) for both in greedy for said in both.values())
    assert torch.equal(greedy[0]["cold"].codes[0, 0], greedy[0]["neighbour"].codes[0, 0]), "as cold as greedy"


def test_a_failing_begin_gives_the_slot_back(checkpoint: Checkpoint, settings, monkeypatch):
    engine = Engine(checkpoint, settings.with_values(engine={"slots": 1}))
    monkeypatch.setattr(engine.dialect, "begin", lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory")))
    with pytest.raises(RuntimeError, match="out of memory"):
        engine.open(1, engine.parse_options({}))
    monkeypatch.undo()
    engine.open(2, engine.parse_options({}))


def test_the_voice_and_the_prompt_change_what_is_said(engine: Engine, log_mels):
    plain = converse(engine, 1, log_mels[:4], voice="ethan")
    assert not same(plain, converse(engine, 2, log_mels[:4], voice="chelsie"))
    assert not same(plain, converse(engine, 3, log_mels[:4], voice="ethan", system_prompt="Shout."))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"voice": "nobody"}, "voice is 'nobody', expected one of aiden, chelsie, ethan"),
        ({"voice": 3}, "voice is 3, expected text"),
        ({"volume": 11}, "unknown option 'volume', expected one of dialect, voice, system_prompt, seed, text_temp"),
        ({"top_k": float("inf")}, "top_k is inf, expected a whole number"),
        ({"top_k": 2.5}, "top_k is 2.5, expected a whole number"),
        ({"top_p": "0"}, "top_p is 0.0, expected a number above 0 and up to 1"),
        ({"seed": True}, "seed is True, expected a whole number"),
        ({"dialect": "turn"}, "dialect is 'turn', expected 'sca'"),
    ],
)
def test_a_bad_option_is_named(engine: Engine, parameters, message):
    with pytest.raises(OptionError) as error:
        engine.parse_options(parameters)
    assert message in str(error.value)


def test_numbers_may_come_as_text(engine: Engine):
    options = engine.parse_options({"temperature": "0.5", "top_k": "20", "seed": "9"})
    assert (options.sampling.temperature, options.sampling.top_k, options.seed) == (0.5, 20, 9)
    assert engine.parse_options({"seed": 2**53 + 1}).seed == 2**53 + 1


def test_a_prompt_that_does_not_fit_is_refused_and_takes_no_slot(checkpoint: Checkpoint, settings):
    engine = Engine(checkpoint, settings.with_values(engine={"prompt_positions": 20}))
    with pytest.raises(OptionError, match="tokens long, expected at most 20"):
        engine.open(1, engine.parse_options({"system_prompt": "x" * 30}))
    assert engine.open_conversations == 0
