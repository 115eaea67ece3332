"""Spoken changes of an order, spliced: a synthetic voice begins them, a recording's words end them.

The recordings contain orders only. Without splicing, all training data for changes ("actually a latte", "with almond
milk") would be synthetic.
"""

from __future__ import annotations

import random
from collections import defaultdict

import numpy as np

from config.settings import INPUT_HZ
from training.clips import Clip
from training.grammar import openings
from training.orders import SLOTS
from training.splice import ADDITIONS, Splicer, gain, shifted

VALUE_ONLY = 0.2  # share of changes that consist of a value
MAX_BREAK_S = 0.12  # silence between the opening and the value


class Changes:
    """Generator of changes from the recordings of `splicer` and from synthetic openings."""

    def __init__(self, splicer: Splicer):
        self._splicer = splicer
        self._openings: dict[str, list[Clip]] = defaultdict(list)  # openings by their text
        self._fitting = {slot: openings(slot) for slot in SLOTS}

    def add(self, clips: list[Clip]) -> None:
        """Add openings: `about["text"]` is one of the grammar's."""
        for clip in clips:
            self._openings[clip.about["text"]].append(clip)

    def change(self, draw: random.Random) -> Clip:
        """Return a change of one slot."""
        slot = draw.choice(self._splicer.slots)
        value, words, sound = self._splicer.value(draw, slot)
        available = [text for text in self._fitting[slot] if self._openings[text]]
        if available and (slot in ADDITIONS or draw.random() > VALUE_ONLY):
            opening = draw.choice(self._openings[draw.choice(available)])
            opening_sound = opening.samples * gain(opening.samples, sound)
            silence = np.zeros(int(draw.uniform(0, MAX_BREAK_S) * INPUT_HZ))
            opening_words = opening.about["text"].split()
            word_s = len(opening_sound) / INPUT_HZ / len(opening_words)
            first = [(word, word_s * i, word_s * (i + 1)) for i, word in enumerate(opening_words)]
            words = first + shifted(words, (len(opening_sound) + len(silence)) / INPUT_HZ)
            sound = np.concatenate([opening_sound, silence, sound])
        about = {
            "text": " ".join(word for word, _, _ in words),
            "kind": "change",
            "slots": {slot: value},
            "removed": (),
            "words": words,
            "extent": (0.0, len(sound) / INPUT_HZ),
        }
        return Clip(sound.clip(-32768, 32767).astype(np.int16), about)
