"""The soak: what it holds, and what it does not let pass."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from benchmarks.dialogue import write
from benchmarks.reference import ask, by_transformers, difference, scripts
from benchmarks.soak import Sample, Soak, show, soak
from benchmarks.soak_picture import draw
from config.settings import BARISTA
from engine.checkpoint import Checkpoint, load_checkpoint
from tests.conftest import CPU, Served

SLOTS = 4


@pytest.fixture(scope="module")
def barista() -> Checkpoint:
    return load_checkpoint(BARISTA, CPU)


def test_watched_answers_are_what_generate_gives(served_barista: Served, barista: Checkpoint):
    for script in scripts(2):
        expected = by_transformers(barista, served_barista.settings, script)
        assert all(len(answer.sound) > 24_000 for answer in expected)
        found = asyncio.run(ask(served_barista.settings, script))
        assert difference(found, expected) is None
        sound = expected[1].sound.copy()
        sound[12_000] += 3
        assert "by 3 steps" in str(difference([expected[0], replace(expected[1], sound=sound)], expected))
        assert "answer 1 is 'no'" in str(difference([replace(found[0], text="no"), found[1]], expected))
        assert "takes None s" in str(difference([found[0], replace(found[1], spoken_s=None)], expected))


def sample(at_s: float, memory: int) -> Sample:
    return Sample(at_s, 1, 10, 1, 0, 100, 0, {"bridge": memory})


def test_what_grows_or_stays_is_a_problem():
    run = Soak("transformers", 1, samples=[sample(s, 100 << 20) for s in range(100)], checked=1)
    assert run.problems() == []
    for second in range(80, 100):
        run.samples[second] = sample(second, 160 << 20)
    run.slots_left, run.differences, run.errors, run.checked = 2, ["after 3 s: other"], ["broken"] * 12, 0
    assert run.problems() == [
        *["broken"] * 10,
        "and 2 errors more",
        "after 3 s: other",
        "no conversation was held against what was expected",
        "2 slots are still taken 15 s after the last conversation",
        "bridge grew from 105 MB to 168 MB",
    ]


@pytest.mark.long
def test_three_minutes_at_a_full_server(served_barista: Served, barista: Checkpoint, tmp_path):
    run = soak(served_barista.settings, barista, SLOTS + 1, 180)
    assert run.problems() == []
    assert run.checked > 50
    assert len(run.kinds) == 7, "every kind of user was there"
    assert max(each.slots_taken for each in run.samples) == SLOTS, "it was full"
    assert run.refused > 0
    assert {"bridge", "Triton", "Triton: thinker_talker"} <= set(run.growth())
    write(run, tmp_path / "soak.json")
    assert draw(run, tmp_path / "soak.png").stat().st_size > 20_000
    assert "equal to transformers" in [str(cell) for cell in show(run)[0].columns[0].cells][-5]
    assert run.samples[-1].at_s >= 170
