"""The soak: comparison with known answers, problems, and a run at a full server."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from benchmarks.plot import draw_soak
from benchmarks.reference import difference, generate_answers, request_answers, scripts
from benchmarks.soak import Sample, Soak, show, soak
from config.settings import BARISTA
from engine.checkpoint import Checkpoint, load_checkpoint
from tests.conftest import CPU, Served
from training.judges.dialogue import write_json

SLOTS = 4


@pytest.fixture(scope="module")
def barista() -> Checkpoint:
    return load_checkpoint(BARISTA, CPU)


def test_checked_answers_are_equal_to_generate(served_barista: Served, barista: Checkpoint):
    for script in scripts(2):
        expected = generate_answers(barista, served_barista.settings, script)
        assert all(len(answer.audio) > 24_000 for answer in expected)
        answers = asyncio.run(request_answers(served_barista.settings, script))
        assert difference(answers, expected) is None
        audio = expected[1].audio.copy()
        audio[12_000] += 3
        assert "got 3 steps" in str(difference([expected[0], replace(expected[1], audio=audio)], expected))
        assert "got 'no'" in str(difference([replace(answers[0], text="no"), answers[1]], expected))
        assert "got None s" in str(difference([answers[0], replace(answers[1], spoken_s=None)], expected))


def sample(at_s: float, memory: int) -> Sample:
    return Sample(at_s, 1, 10, 1, 0, 100, 0, {"bridge": memory})


def test_growth_errors_and_occupied_slots_are_problems():
    run = Soak("transformers", 1, samples=[sample(s, 100 << 20) for s in range(100)], checked=1)
    assert run.problems() == []
    for second in range(80, 100):
        run.samples[second] = sample(second, 160 << 20)
    run.slots_left, run.differences, run.errors, run.checked = 2, ["after 3 s: other"], ["broken"] * 12, 0
    assert run.problems() == [
        *["broken"] * 10,
        "2 further errors",
        "after 3 s: other",
        "no conversation was equal to the expected one",
        "2 slots are occupied 15 s after the last conversation",
        "bridge grew from 105 MB to 168 MB",
    ]


@pytest.mark.long
def test_three_minutes_at_a_full_server_have_no_problems(served_barista: Served, barista: Checkpoint, tmp_path):
    run = soak(served_barista.settings, barista, SLOTS + 1, 180)
    assert run.problems() == []
    assert run.checked > 50
    assert len(run.kinds) == 7, "every kind of client"
    assert max(each.slots_taken for each in run.samples) == SLOTS, "the server was full"
    assert run.refused > 0
    assert {"bridge", "Triton", "Triton: thinker_talker"} <= set(run.growth())
    write_json(run, tmp_path / "soak.json")
    assert draw_soak(run, tmp_path / "soak.png").stat().st_size > 20_000
    assert "equal to transformers" in [str(cell) for cell in show(run)[0].columns[0].cells][-5]
    assert run.samples[-1].at_s >= 170
