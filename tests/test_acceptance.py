"""What counts as an order taken exactly."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks.acceptance import is_accepted, named_slots
from benchmarks.understanding import UnderstandingError, bench_understanding, in_babble
from config import Settings

LABEL = {
    "coffeeDrink": "iced mocha",
    "size": "medium",
    "milkAmount": "lots of soy milk",
    "sugarAmount": "some brown sugar",
}


@pytest.mark.parametrize(
    ("answer", "accepted"),
    [
        ("Okay, a medium iced mocha with a lot of soy milk and brown sugar. Which roast would you like?", True),
        ("A medium iced mocha, with lots of soy milk and some brown sugar!", True),
        ("Okay, a medium iced mocha with soy milk and brown sugar.", False),
        ("Okay, a medium roast iced mocha with a lot of soy milk and brown sugar.", False),
        ("Okay, a medium mocha with a lot of soy milk and brown sugar.", False),
        ("Okay, a medium iced mocha with a lot of soy milk and brown sugar and a latte.", False),
        ("A medium iced mocha with a lot of soy milk and brown sugar?", False),
        ("", False),
    ],
)
def test_exactly_the_labels_slots_with_its_values(answer, accepted):
    assert is_accepted(answer, LABEL) == accepted


def test_questions_state_nothing():
    assert named_slots("Sure. Would you like milk? Medium roast?") == set()


def test_babble_lies_so_many_decibels_below():
    random = np.random.RandomState(1)
    sound = random.normal(0, 0.1, 16000).astype(np.float32)
    others = [random.normal(0, level, 9000).astype(np.float32) for level in (0.01, 0.1, 0.3, 0.5)]
    babble = in_babble(sound, others, 12.0, "seed") - sound
    assert 20 * np.log10(sound.std() / babble.std()) == pytest.approx(12.0, abs=0.1)


def test_a_folder_without_labels_is_refused(tmp_path):
    with pytest.raises(UnderstandingError, match=r"labels\.json cannot be read"):
        bench_understanding(Settings.load(environ={}), tmp_path, [None], 1)
    (tmp_path / "labels.json").write_text(json.dumps({"a.wav": LABEL}))
    with pytest.raises(UnderstandingError, match=r"a\.wav cannot be read as sound"):
        bench_understanding(Settings.load(environ={}), tmp_path, [None], 1)
