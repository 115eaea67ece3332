"""Acceptance of orders: all slots right, or rejected."""

from __future__ import annotations

import json

import numpy as np
import pytest

from config import Settings
from training.judges.acceptance import is_accepted, stated_slots
from training.judges.understanding import UnderstandingError, add_babble, bench_understanding

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
def test_answer_is_accepted_if_it_states_exactly_the_labels_slots(answer, accepted):
    assert is_accepted(answer, LABEL) == accepted


def test_questions_state_no_slots():
    assert stated_slots("Sure. Would you like milk? Medium roast?") == set()


def test_babble_has_the_requested_signal_to_noise_ratio():
    random = np.random.RandomState(1)
    sound = random.normal(0, 0.1, 16000).astype(np.float32)
    others = [random.normal(0, level, 9000).astype(np.float32) for level in (0.01, 0.1, 0.3, 0.5)]
    babble = add_babble(sound, others, 12.0, "seed") - sound
    assert 20 * np.log10(sound.std() / babble.std()) == pytest.approx(12.0, abs=0.1)


def test_folder_without_labels_or_recordings_raises_an_error(tmp_path):
    with pytest.raises(UnderstandingError, match=r"labels\.json cannot be read"):
        bench_understanding(Settings.load(environ={}), tmp_path, [None], 1)
    (tmp_path / "labels.json").write_text(json.dumps({"a.wav": LABEL}))
    with pytest.raises(UnderstandingError, match=r"a\.wav cannot be read as sound"):
        bench_understanding(Settings.load(environ={}), tmp_path, [None], 1)
