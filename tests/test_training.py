"""Splicing of the training's recordings."""

from __future__ import annotations

import random

import numpy as np
import pytest

from config.settings import INPUT_HZ
from training.changes import Changes
from training.clips import Clip
from training.judges.acceptance import normalize
from training.splice import Splicer

WORD_S, PAUSE_S = 0.3, 0.05
LARGE = (
    "can i have a large dark roast latte with lots of milk and some sugar",
    "large",
    "dark roast",
    "latte",
    "a lot of milk",
    "sugar",
)
SMALL = (
    "a small medium roast mocha with a little bit of oat milk",
    "small",
    "medium roast",
    "mocha",
    "a bit of oat milk",
)
MEDIUM = ("get me a medium medium roast coffee with cream", "medium", "medium roast", "coffee", "cream")
SLOTS = ("size", "roast", "coffeeDrink", "milkAmount", "sugarAmount")


def tone_of(word: str) -> int:
    """Return the pitch of a word in hertz, which identifies it."""
    return 200 + 20 * (sum(map(ord, word)) % 97)


def recording(text: str, *values: str) -> Clip:
    words, samples, time_s = [], [], 0.0
    for word in text.split():
        time = np.arange(int(WORD_S * INPUT_HZ)) / INPUT_HZ
        samples += [np.zeros(int(PAUSE_S * INPUT_HZ)), 8000 * np.sin(2 * np.pi * tone_of(word) * time)]
        words.append((word, time_s + PAUSE_S, time_s + PAUSE_S + WORD_S))
        time_s += PAUSE_S + WORD_S
    about = {"text": text, "kind": "order", "slots": dict(zip(SLOTS, values, strict=False)), "words": words}
    return Clip(np.concatenate(samples).astype(np.int16), about)


def without_amount(value: str) -> str:
    return value.removeprefix("a lot of ").removeprefix("a bit of ")


def pitch_hz(clip: Clip, begin_s: float, end_s: float) -> float:
    """Return the pitch of a stretch of a clip in hertz."""
    samples = clip.samples[int(begin_s * INPUT_HZ) : int(end_s * INPUT_HZ)]
    spectrum = np.abs(np.fft.rfft(samples, 16 * INPUT_HZ // 10))
    return float(spectrum.argmax() / 1.6)


@pytest.mark.parametrize("seed", range(100))
def test_spliced_order_has_the_audio_of_its_words_and_the_words_of_its_slots(seed: int):
    draw, clips = random.Random(seed), [recording(*each) for each in (LARGE, SMALL, MEDIUM)]
    clip = Splicer(clips).another_order(draw, draw.choice(clips))
    about = clip.about
    assert [word for word, _, _ in about["words"]] == about["text"].split()
    for word, begin_s, end_s in about["words"]:
        assert pitch_hz(clip, begin_s, end_s) == pytest.approx(tone_of(word), abs=5), word
    text = normalize(about["text"])
    for slot, value in about["slots"].items():
        assert value in text
        assert not value.startswith("some")
        assert without_amount(value) in {without_amount(other.about["slots"].get(slot, "")) for other in clips}
    assert ("roast" in about["slots"]) == ("roast" in text)


def test_splicing_changes_every_slot_and_deletes_some():
    clips = [recording(*each) for each in (LARGE, SMALL, MEDIUM)]
    splicer, draw = Splicer(clips), random.Random(1)
    made = [splicer.another_order(draw, clips[0]).about["slots"] for _ in range(1000)]
    for slot, value in clips[0].about["slots"].items():
        assert {slots[slot] for slots in made if slot in slots} > {value}, slot
    assert any("size" not in slots for slots in made)
    assert all("coffeeDrink" in slots for slots in made)


def test_splicing_changes_amounts_and_swaps_milk_and_sugar():
    clips = [recording(*each) for each in (LARGE, SMALL, MEDIUM)]
    splicer, draw = Splicer(clips), random.Random(1)
    made = [splicer.another_order(draw, clips[0]).about for _ in range(1000)]
    amounts = {(about["slots"]["milkAmount"], about["slots"]["sugarAmount"]) for about in made}
    assert {
        ("a lot of milk", "sugar"),
        ("milk", "sugar"),
        ("milk", "a bit of sugar"),
        ("a lot of milk", "a lot of sugar"),
    } <= amounts
    assert any(about["text"].index("sugar") < about["text"].index("milk") for about in made)


def test_change_consists_of_an_opening_and_a_recorded_value():
    clips, draw = [recording(*each) for each in (LARGE, SMALL, MEDIUM)], random.Random(1)
    changes = Changes(Splicer(clips))
    changes.add([recording(text) for text in ("make it", "actually", "with")])
    seen = set()
    for _ in range(100):
        clip = changes.change(draw)
        ((slot, value),) = clip.about["slots"].items()
        text = normalize(clip.about["text"])
        assert text.endswith(value)
        seen.add((slot, text.removesuffix(value).strip()))
        for word, begin_s, end_s in clip.about["words"][-1:]:
            assert pitch_hz(clip, begin_s, end_s) == pytest.approx(tone_of(word), abs=5), word
    assert {("milkAmount", "with"), ("size", "make it a"), ("roast", ""), ("coffeeDrink", "actually")} <= seen
    assert ("milkAmount", "") not in seen
