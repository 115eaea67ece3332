"""Splicing of recorded orders: the words of a slot are replaced by another recording's, or deleted.

A model can memorise a few hundred recordings with their orders. Splicing gives millions of combinations, so that the
words have to be recognised.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from typing import Any

import numpy as np

from config.settings import INPUT_HZ
from training.clips import Clip
from training.judges.acceptance import normalize

OPTIONAL = ("size", "roast", "numberOfShots")  # slots before the drink, which can be deleted
MAX_GAIN = 5.0  # gain of inserted words
DELETIONS = 0.3  # share of deletions among the changes of an optional slot
ADDITIONS = ("milkAmount", "sugarAmount")
AMOUNT = re.compile("(?:a lot of|a bit of) ")  # possible beginning of an addition's value
MAX_VALUE_WORDS = 6
NO_AUDIO = np.zeros(0, np.int16)


class Splicer:
    """Generator of orders from recordings with known word times (`about["words"]`)."""

    def __init__(self, clips: list[Clip]):
        self._donors: dict[str, list[tuple[Clip, slice]]] = defaultdict(list)
        self._amounts: list[tuple[Clip, slice]] = []
        for clip in clips:
            for slot, words in _slot_words(clip).items():
                self._donors[slot].append((clip, words))
                if slot in ADDITIONS and (amount := _amount_words(clip, slot, words)).start < amount.stop:
                    self._amounts.append((clip, amount))

    @property
    def slots(self) -> list[str]:
        """The slots with known words."""
        return sorted(self._donors)

    def another_order(self, draw: random.Random, clip: Clip) -> Clip:
        """Return the recording with up to three slots changed, and sometimes with milk and sugar in reverse order."""
        for _ in range(draw.randint(0, 3)):
            words = _slot_words(clip)
            if not words:
                return clip
            slot = draw.choice(sorted(words))
            if slot in OPTIONAL and len(words) > 2 and draw.random() < DELETIONS:
                clip = _without(clip, slot, words[slot])
            elif slot in ADDITIONS and draw.random() < 0.5:
                clip = self._another_amount(draw, clip, slot, words[slot])
            else:
                clip = _with(clip, slot, words[slot], *draw.choice(self._donors[slot]))
        if draw.random() < 0.5 and all(slot in _slot_words(clip) for slot in ADDITIONS):
            clip = _reverse_additions(clip)
        return clip

    def value(self, draw: random.Random, slot: str) -> tuple[str, list[Any], np.ndarray]:
        """Return a slot's value, its words with their times, and their audio (int16), including a preceding article."""
        donor, words = draw.choice(self._donors[slot])
        before = donor.about["words"][max(0, words.start - 1)][0]
        timed = donor.about["words"][words.start - (before in ("a", "an")) : words.stop]
        return donor.about["slots"][slot], shifted(timed, -timed[0][1]), _audio_of(donor, timed)

    def _another_amount(self, draw: random.Random, clip: Clip, slot: str, words: slice) -> Clip:
        """Return the clip with another amount of the same addition: "lots of", "a bit of", "some", or none."""
        amount, addition = _amount_words(clip, slot, words), AMOUNT.sub("", clip.about["slots"][slot])
        if amount.start < amount.stop and draw.random() < 0.4:
            return _spliced(clip, amount, NO_AUDIO, [], clip.about["slots"] | {slot: addition})
        donor, given = draw.choice(self._amounts)
        value = normalize(" ".join([*(word for word, _, _ in donor.about["words"][given]), addition]))
        return _spliced(clip, amount, *_matched(clip, donor, given), clip.about["slots"] | {slot: value})


def _slot_words(clip: Clip) -> dict[str, slice]:
    """Return the range of words of each slot's value, if it is unambiguous; "medium" is not that of a roast."""
    words = [word for word, _, _ in clip.about["words"]]
    spans = [
        slice(first, last + 1)
        for first in range(len(words))
        for last in range(first, min(first + MAX_VALUE_WORDS, len(words)))
    ]
    texts = [(normalize(" ".join(words[span])), span) for span in spans]
    found: dict[str, slice] = {}
    for slot, value in sorted(clip.about["slots"].items(), key=lambda item: -len(item[1])):
        free = [
            span
            for text, span in texts
            if text == value and all(span.stop <= other.start or other.stop <= span.start for other in found.values())
        ]
        if free:
            found[slot] = free[0]
    return found


def _amount_words(clip: Clip, slot: str, value: slice) -> slice:
    """Return the range of an addition's words that express its amount; empty at the first word if none does."""
    words = [word for word, _, _ in clip.about["words"]]
    amount = AMOUNT.match(clip.about["slots"][slot])
    expected = normalize((amount[0] if amount else "") + "it")
    ends = [
        end
        for end in range(value.start, value.stop)
        if normalize(" ".join([*words[value.start : end], "it"])) == expected
    ]
    return slice(value.start, ends[-1])


def _with(clip: Clip, slot: str, words: slice, donor: Clip, given: slice) -> Clip:
    slots = clip.about["slots"] | {slot: donor.about["slots"][slot]}
    return _spliced(clip, words, *_matched(clip, donor, given), slots)


def _without(clip: Clip, slot: str, words: slice) -> Clip:
    slots = {name: value for name, value in clip.about["slots"].items() if name != slot}
    return _spliced(clip, words, NO_AUDIO, [], slots)


def _reverse_additions(clip: Clip) -> Clip:
    """Swap milk and sugar."""
    first, second = sorted((_slot_words(clip)[slot] for slot in ADDITIONS), key=lambda words: words.start)
    slots = clip.about["slots"]
    changed = _spliced(clip, second, *_matched(clip, clip, first), slots)  # the later one first: `first` stays valid
    return _spliced(changed, first, *_matched(clip, clip, second), slots)


def _matched(clip: Clip, donor: Clip, given: slice) -> tuple[np.ndarray, list[Any]]:
    """Return a donor's words for another recording: their audio at the recording's loudness, and the words."""
    words = donor.about["words"][given]
    loudness = gain(_audio_of(donor, donor.about["words"]), _audio_of(clip, clip.about["words"]))
    return (_audio_of(donor, words) * loudness).clip(-32768, 32767).astype(np.int16), words


def _spliced(clip: Clip, replaced: slice, audio: np.ndarray, inserted: list[Any], slots: dict[str, str]) -> Clip:
    """Replace a range of words and their audio, and shift the times of the words after them."""
    words = clip.about["words"]
    begin_s = words[replaced.start][1]
    end_s = words[replaced.stop - 1][2] if replaced.start < replaced.stop else begin_s
    inserted_s = float(inserted[-1][2] - inserted[0][1]) if inserted else 0.0
    placed = shifted(inserted, begin_s - inserted[0][1]) if inserted else []
    after = shifted(words[replaced.stop :], inserted_s - (end_s - begin_s))
    all_words = [*words[: replaced.start], *placed, *after]
    about = clip.about | {
        "words": all_words,
        "text": " ".join(word for word, _, _ in all_words),
        "slots": slots,
        "extent": (all_words[0][1], all_words[-1][2]),
    }
    begin, end = int(begin_s * INPUT_HZ), int(end_s * INPUT_HZ)
    return Clip(np.concatenate([clip.samples[:begin], audio, clip.samples[end:]]), about)


def _audio_of(clip: Clip, words: list[Any]) -> np.ndarray:
    return clip.samples[int(words[0][1] * INPUT_HZ) : int(words[-1][2] * INPUT_HZ)].astype(np.float32)


def gain(audio: np.ndarray, reference: np.ndarray) -> float:
    """Return the gain that makes audio as loud as a reference, up to MAX_GAIN."""
    return min(MAX_GAIN, float(reference.std()) / max(1.0, float(audio.std())))


def shifted(words: list[Any], seconds: float) -> list[tuple[str, float, float]]:
    """Return words with their times shifted."""
    return [(word, begin + seconds, end + seconds) for word, begin, end in words]
