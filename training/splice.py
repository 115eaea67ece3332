"""Real orders that nobody recorded: a recording's words for a slot are replaced by another's, or left out.

A few hundred recordings can be learned by heart, each with its order. Of spliced ones there are millions, and what a
voice says has to be heard.
"""

from __future__ import annotations

import random
from collections import defaultdict
from typing import Any

import numpy as np

from benchmarks.acceptance import plain
from config.settings import INPUT_HZ
from training.clips import Clip

AT_WILL = ("size", "roast", "numberOfShots")  # slots that stand before the drink, and can be left out
LOUDEST = 5.0  # gain of words that are put in
LEAVES_OUT = 0.3  # share of changes


class Splicer:
    """Changes recordings whose words' times are known (`about["words"]`), by those of all of them."""

    def __init__(self, clips: list[Clip]):
        self._lenders: dict[str, list[tuple[Clip, slice]]] = defaultdict(list)
        for clip in clips:
            for slot, place in _places(clip).items():
                self._lenders[slot].append((clip, place))

    def another_order(self, draw: random.Random, clip: Clip) -> Clip:
        """The recording with up to three slots changed."""
        for _ in range(draw.randint(0, 3)):
            places = _places(clip)
            if not places:
                return clip
            slot = draw.choice(sorted(places))
            if slot in AT_WILL and len(places) > 2 and draw.random() < LEAVES_OUT:
                clip = _without(clip, slot, places[slot])
            else:
                clip = _with(clip, slot, places[slot], *draw.choice(self._lenders[slot]))
        return clip


def _places(clip: Clip) -> dict[str, slice]:
    """Which of a recording's words say each slot's value, where they can be told; "medium" is not that of a roast."""
    words = [word for word, _, _ in clip.about["words"]]
    spans = [slice(first, last + 1) for first in range(len(words)) for last in range(first, min(first + 6, len(words)))]
    said = [(plain(" ".join(words[span])), span) for span in spans]
    found: dict[str, slice] = {}
    for slot, value in sorted(clip.about["slots"].items(), key=lambda item: -len(item[1])):
        free = [
            span
            for text, span in said
            if text == value and all(span.stop <= other.start or other.stop <= span.start for other in found.values())
        ]
        if free:
            found[slot] = free[0]
    return found


def _with(clip: Clip, slot: str, place: slice, lender: Clip, lent: slice) -> Clip:
    words, borrowed = clip.about["words"][place], lender.about["words"][lent]
    old, new = _sound_of(clip, words), _sound_of(lender, borrowed)
    gain = min(LOUDEST, old.std() / max(1.0, new.std()))
    begin_s, later_s = words[0][1], _length_s(borrowed) - _length_s(words)
    placed = _later(borrowed, begin_s - borrowed[0][1])
    slots = clip.about["slots"] | {slot: lender.about["slots"][slot]}
    return _spliced(clip, place, (new * gain).clip(-32768, 32767).astype(np.int16), placed, later_s, slots)


def _without(clip: Clip, slot: str, place: slice) -> Clip:
    slots = {name: value for name, value in clip.about["slots"].items() if name != slot}
    return _spliced(clip, place, np.zeros(0, np.int16), [], -_length_s(clip.about["words"][place]), slots)


def _spliced(
    clip: Clip, place: slice, sound: np.ndarray, placed: list[Any], later_s: float, slots: dict[str, str]
) -> Clip:
    """A recording with other sound at the place of some words; all that follows is so much later."""
    words = clip.about["words"]
    begin, end = (int(time * INPUT_HZ) for time in (words[place][0][1], words[place][-1][2]))
    all_words = [*words[: place.start], *placed, *_later(words[place.stop :], later_s)]
    about = clip.about | {
        "words": all_words,
        "text": " ".join(word for word, _, _ in all_words),
        "slots": slots,
        "extent": (all_words[0][1], all_words[-1][2]),
    }
    return Clip(np.concatenate([clip.samples[:begin], sound, clip.samples[end:]]), about)


def _sound_of(clip: Clip, words: list[Any]) -> np.ndarray:
    return clip.samples[int(words[0][1] * INPUT_HZ) : int(words[-1][2] * INPUT_HZ)].astype(np.float32)


def _length_s(words: list[Any]) -> float:
    return float(words[-1][2] - words[0][1])


def _later(words: list[Any], seconds: float) -> list[tuple[str, float, float]]:
    return [(word, begin + seconds, end + seconds) for word, begin, end in words]
