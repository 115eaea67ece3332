"""A conversation says the same alone, in a full batch, and among others that come and go."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch

from engine.checkpoint import Checkpoint
from engine.engine import Engine
from engine.sca.dialect import AudioBatch
from engine.tick import TickInput, TickOutput
from tests.conftest import note_uniforms
from tests.inspect_objects import found_in

TICKS = 200
SLOTS = 6
SEEDS = range(8)
DRAWING = {
    "temperature": 0.9,
    "text_temperature": 0.8,
    "text_top_k": 50,
    "text_top_p": 1.0,
    "top_k": 50,
    "repetition_penalty": 1.05,
}


@pytest.fixture(scope="module")
def engine(checkpoint: Checkpoint, settings) -> Engine:
    """A context so short that conversations of 200 ticks slide many times."""
    return Engine(checkpoint, settings.with_values(engine={"slots": SLOTS, "context_s": 16}))


def alone(engine: Engine, ticks: Sequence[TickInput], count: int, **options) -> list[TickOutput]:
    engine.open("alone", engine.parse_options(options))
    said = [engine.tick({"alone": ticks[tick % len(ticks)]})["alone"] for tick in range(count)]
    engine.close("alone")
    return said


def assert_same(found: Sequence[TickOutput], expected: Sequence[TickOutput]) -> None:
    for tick, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert one.tokens == other.tokens, f"text tokens of tick {tick}"
        assert torch.equal(one.codes, other.codes), f"codes of tick {tick}"
        assert one.text == other.text


def test_padding_hears_nobody(checkpoint: Checkpoint, settings, ticks):
    """Its rows hold what nobody says, not what the last full batch said."""
    engine = Engine(checkpoint, settings.with_values(engine={"slots": 4}))
    for key in range(4):
        engine.open(key, engine.parse_options({}))
    engine.tick(dict.fromkeys(range(4), ticks[3]))
    engine.tick({0: ticks[3]})
    (batch,) = found_in(engine.dialect, AudioBatch)
    assert batch.log_mel[0].any()
    assert not batch.log_mel[1:].any()


def test_no_number_is_drawn_twice(checkpoint: Checkpoint, settings, ticks, monkeypatch):
    """Not even when a context slides: 12 ticks in a context of 6."""
    engine = Engine(checkpoint, settings.with_values(engine={"slots": 1, "context_s": 2}))
    drawn = note_uniforms(engine, monkeypatch)
    alone(engine, ticks, 12, seed=3, **DRAWING)
    assert drawn == list(range(12 * (2 + 4 * 16))), "two tokens and four frames of 16 codes a tick, each its own"


@pytest.mark.parametrize("others", [1, 3, 15])
def test_not_a_bit_of_a_hidden_state_depends_on_the_company(checkpoint: Checkpoint, settings, ticks, others):
    """What tokens could hide: they rarely tip over a last bit. The others are older, by up to 15 times 40 ticks."""

    def hidden_states(company: int) -> list[torch.Tensor]:
        engine = Engine(checkpoint, settings.with_values(engine={"slots": 16}))
        for key in range(company):
            engine.open(key, engine.parse_options({"seed": key, **DRAWING}))
            engine.conversation(key).ticks = 40 * (key + 1)
        engine.open("watched", engine.parse_options({}))
        states = []
        for tick in range(8):
            heard = {key: ticks[(tick + key) % len(ticks)] for key in range(company)}
            engine.tick({**heard, "watched": ticks[tick]})
            states += [engine.slots.thinker_hidden[company].clone(), engine.slots.last_frame[company].clone()]
        return states

    pairs = zip(hidden_states(0), hidden_states(others), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


@pytest.fixture(scope="module")
def expected(engine: Engine, ticks) -> dict[str, list[TickOutput]]:
    """What the watched conversation says alone."""
    return {
        "greedy": alone(engine, ticks, TICKS, voice="aiden"),
        "drawing": alone(engine, ticks, TICKS, voice="aiden", seed=11, **DRAWING),
    }


@pytest.mark.parametrize("how", ["greedy", "drawing"])
@pytest.mark.parametrize("seed", SEEDS)
def test_among_others_that_come_and_go(engine: Engine, ticks, expected, seed, how):
    chance = random.Random(seed)
    options = {"voice": "aiden", **({"seed": 11, **DRAWING} if how == "drawing" else {})}
    others: list[int] = []
    born = 0
    said = []
    for tick in range(TICKS):
        if tick == 0:
            while len(others) < chance.randrange(SLOTS):  # so that the watched one has any slot
                engine.open(born, engine.parse_options({}))
                others.append(born)
                born += 1
            engine.open("watched", engine.parse_options(options))
        if len(others) < SLOTS - 1 and chance.random() < 0.3:
            choices = DRAWING if chance.random() < 0.3 else {}
            prompt = chance.choice(["", "Be kind.", "Be brief, and answer in one sentence."])
            engine.open(born, engine.parse_options({"system_prompt": prompt, "seed": born, **choices}))
            others.append(born)
            born += 1
        if others and chance.random() < 0.25:
            engine.close(others.pop(chance.randrange(len(others))))
        heard = {key: ticks[(tick + key) % len(ticks)] for key in others if chance.random() < 0.8}
        heard["watched"] = ticks[tick % len(ticks)]
        keys = list(heard)
        chance.shuffle(keys)
        said.append(engine.tick({key: heard[key] for key in keys})["watched"])
    for key in [*others, "watched"]:
        engine.close(key)
    assert born > 20, "many came"
    assert_same(said, expected[how])


def test_in_a_full_batch_of_all_ages(checkpoint: Checkpoint, settings, ticks):
    """Sixteen at once; the others' caches reach from nothing to far beyond what the watched one attends to."""
    engine = Engine(checkpoint, settings.with_values(engine={"slots": 16}))
    expected = alone(engine, ticks, TICKS, voice="aiden")
    for key in range(15):
        engine.open(key, engine.parse_options({"seed": key, **DRAWING}))
        engine.conversation(key).ticks = key * engine.settings.context_ticks // 15  # as if so old: zeros behind it
    engine.open("watched", engine.parse_options({"voice": "aiden"}))
    said, furthest = [], 0
    for tick in range(TICKS):
        heard = {key: ticks[(tick * 7 + key) % len(ticks)] for key in range(15)}
        said.append(engine.tick({**heard, "watched": ticks[tick % len(ticks)]})["watched"])
        furthest = max(furthest, *(engine.thinker_length(key) for key in range(15)))
    assert furthest > 3000 > 2 * engine.thinker_length("watched"), "far beyond"
    assert_same(said, expected)
