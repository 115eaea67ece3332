"""The output of a conversation does not depend on the other conversations of the batch, even if they begin and end."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import pytest
import torch

from engine.checkpoint import Checkpoint
from engine.engine import Engine
from engine.sca.dialect import AudioBatch
from engine.tick import TickInput, TickOutput
from tests.conftest import note_uniforms
from tests.inspect_objects import found_in

TICKS = 120  # more than twice the context of 16 s
SLOTS = 6
SEEDS = [seed if seed < 3 else pytest.param(seed, marks=pytest.mark.long) for seed in range(8)]
DRAWING = {
    "temperature": 0.9,
    "text_temperature": 0.8,
    "text_top_k": 50,
    "text_top_p": 1.0,
    "top_k": 50,
    "repetition_penalty": 1.05,
}


class Clock:
    """A clock that a test sets."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture(scope="module")
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="module")
def shared_engine(checkpoint: Checkpoint, settings, clock: Clock) -> Engine:
    """Return an engine with a short context: every conversation evicts ticks in most of its ticks."""
    return Engine(checkpoint, settings.with_values(engine={"slots": SLOTS, "context_s": 16}), clock=clock)


@pytest.fixture
def engine(shared_engine: Engine, clock: Clock) -> Iterator[Engine]:
    """Yield the shared engine; after the test, close conversations that a failed test has left open, as idle."""
    yield shared_engine
    clock.now_s += 2 * shared_engine.settings.engine.idle_timeout_s
    shared_engine.sweep()
    assert shared_engine.open_conversations == 0


def converse(engine: Engine, ticks: Sequence[TickInput], count: int, **options) -> list[TickOutput]:
    engine.open("single", engine.parse_options(options))
    spoken = [engine.tick({"single": ticks[tick % len(ticks)]})["single"] for tick in range(count)]
    engine.close("single")
    return spoken


def assert_same(found: Sequence[TickOutput], expected: Sequence[TickOutput]) -> None:
    for tick, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert one.tokens == other.tokens, f"text tokens of tick {tick}"
        assert torch.equal(one.codes, other.codes), f"codes of tick {tick}"
        assert one.text == other.text


def test_padding_rows_are_cleared(checkpoint: Checkpoint, settings, ticks):
    """After a full batch, the padding of a smaller one does not hold the audio of the full one."""
    engine = Engine(checkpoint, settings.with_values(engine={"slots": 4}))
    for key in range(4):
        engine.open(key, engine.parse_options({}))
    engine.tick(dict.fromkeys(range(4), ticks[3]))
    engine.tick({0: ticks[3]})
    (batch,) = found_in(engine.dialect, AudioBatch)
    assert batch.log_mel[0].any()
    assert not batch.log_mel[1:].any()


def test_each_random_number_is_used_once(checkpoint: Checkpoint, settings, ticks, monkeypatch):
    """Also if a context is full: 12 ticks in a context of 6."""
    engine = Engine(checkpoint, settings.with_values(engine={"slots": 1, "context_s": 2}))
    drawn = note_uniforms(engine, monkeypatch)
    converse(engine, ticks, 12, seed=3, **DRAWING)
    assert drawn == list(range(12 * (2 + 4 * 16))), "two tokens and four frames of 16 codes per tick"


@pytest.mark.parametrize("others", [1, 3, 15])
def test_hidden_states_do_not_depend_on_the_batch(checkpoint: Checkpoint, settings, ticks, others):
    """Equal bit by bit; equal tokens could hide a changed bit. The other conversations are up to 600 ticks older."""

    def hidden_states(count: int) -> list[torch.Tensor]:
        engine = Engine(checkpoint, settings.with_values(engine={"slots": 16}))
        for key in range(count):
            engine.open(key, engine.parse_options({"seed": key, **DRAWING}))
            engine.conversation(key).ticks = 40 * (key + 1)
        engine.open("watched", engine.parse_options({}))
        states = []
        for tick in range(8):
            inputs = {key: ticks[(tick + key) % len(ticks)] for key in range(count)}
            engine.tick({**inputs, "watched": ticks[tick]})
            states += [engine.slots.thinker_hidden[count].clone(), engine.slots.last_frame[count].clone()]
        return states

    pairs = zip(hidden_states(0), hidden_states(others), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


@pytest.fixture(scope="module")
def expected(shared_engine: Engine, ticks) -> dict[str, list[TickOutput]]:
    """Return the output of the watched conversation without other conversations."""
    return {
        "greedy": converse(shared_engine, ticks, TICKS, voice="aiden"),
        "drawing": converse(shared_engine, ticks, TICKS, voice="aiden", seed=11, **DRAWING),
    }


@pytest.mark.parametrize("how", ["greedy", "drawing"])
@pytest.mark.parametrize("seed", SEEDS)
def test_output_does_not_depend_on_conversations_that_begin_and_end(engine: Engine, ticks, expected, seed, how):
    chance = random.Random(seed)
    options = {"voice": "aiden", **({"seed": 11, **DRAWING} if how == "drawing" else {})}
    others: list[int] = []
    born = 0
    spoken = []
    for tick in range(TICKS):
        if tick == 0:
            while len(others) < chance.randrange(SLOTS):  # the watched conversation gets any slot
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
        inputs = {key: ticks[(tick + key) % len(ticks)] for key in others if chance.random() < 0.8}
        inputs["watched"] = ticks[tick % len(ticks)]
        keys = list(inputs)
        chance.shuffle(keys)
        spoken.append(engine.tick({key: inputs[key] for key in keys})["watched"])
    for key in [*others, "watched"]:
        engine.close(key)
    assert born > 20
    assert_same(spoken, expected[how])


def test_output_in_a_full_batch_of_all_ages_equals_that_of_a_batch_of_one(checkpoint: Checkpoint, settings, ticks):
    """Sixteen conversations; the caches of 15 reach from length 0 to more than twice the length of the watched one."""
    engine = Engine(checkpoint, settings.with_values(engine={"slots": 16}))
    expected = converse(engine, ticks, TICKS, voice="aiden")
    for key in range(15):
        engine.open(key, engine.parse_options({"seed": key, **DRAWING}))
        age = key * engine.settings.context_ticks // 15
        engine.conversation(key).ticks = age  # the cache holds zeros
    engine.open("watched", engine.parse_options({"voice": "aiden"}))
    spoken, furthest = [], 0
    for tick in range(TICKS):
        inputs = {key: ticks[(tick * 7 + key) % len(ticks)] for key in range(15)}
        spoken.append(engine.tick({**inputs, "watched": ticks[tick % len(ticks)]})["watched"])
        furthest = max(furthest, *(engine.thinker_length(key) for key in range(15)))
    assert furthest > 3000 > 2 * engine.thinker_length("watched")
    assert_same(spoken, expected)
