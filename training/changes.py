"""Spoken changes of an order that nobody recorded: a synthetic voice begins them, a recording's words end them.

The recordings are orders alone. What is said into the middle of an answer ("actually a latte", "with almond milk") is
short, and was heard from synthetic voices only.
"""

from __future__ import annotations

import random
from collections import defaultdict

import numpy as np

from config.settings import INPUT_HZ
from training.clips import Clip
from training.grammar import openings
from training.orders import SLOTS
from training.splice import ADDITIONS, Splicer, gain, later

BARE = 0.2  # share of changes that name a value and nothing else
LONGEST_BREAK_S = 0.12  # between the two


class Changes:
    """Makes changes of what `splicer` has, and of openings as they come."""

    def __init__(self, splicer: Splicer):
        self._splicer = splicer
        self._spoken: dict[str, list[Clip]] = defaultdict(list)  # by their words
        self._fitting = {slot: openings(slot) for slot in SLOTS}

    def add(self, clips: list[Clip]) -> None:
        """More openings: `about["text"]` is one of the grammar's."""
        for clip in clips:
            self._spoken[clip.about["text"]].append(clip)

    def change(self, draw: random.Random) -> Clip:
        """A change of one slot."""
        slot = draw.choice(self._splicer.slots)
        value, words, sound = self._splicer.value(draw, slot)
        begun = [text for text in self._fitting[slot] if self._spoken[text]]
        if begun and (slot in ADDITIONS or draw.random() > BARE):
            opening = draw.choice(self._spoken[draw.choice(begun)])
            spoken = opening.samples * gain(opening.samples, sound)
            silence = np.zeros(int(draw.uniform(0, LONGEST_BREAK_S) * INPUT_HZ))
            before_s, said = len(spoken) / INPUT_HZ, opening.about["text"].split()
            each_s = before_s / len(said)
            first = [(word, each_s * i, each_s * (i + 1)) for i, word in enumerate(said)]
            words = first + later(words, (len(spoken) + len(silence)) / INPUT_HZ)
            sound = np.concatenate([spoken, silence, sound])
        about = {
            "text": " ".join(word for word, _, _ in words),
            "kind": "change",
            "slots": {slot: value},
            "removed": (),
            "words": words,
            "extent": (0.0, len(sound) / INPUT_HZ),
        }
        return Clip(sound.clip(-32768, 32767).astype(np.int16), about)
