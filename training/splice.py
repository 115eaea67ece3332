"""Real orders that nobody recorded: a recording's words for a slot are replaced by another's, or left out.

A few hundred recordings can be learned by heart, each with its order. Of spliced ones there are millions, and what a
voice says has to be heard.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from typing import Any

import numpy as np

from benchmarks.acceptance import plain
from config.settings import INPUT_HZ
from training.clips import Clip

AT_WILL = ("size", "roast", "numberOfShots")  # slots that stand before the drink, and can be left out
LOUDEST = 5.0  # gain of words that are put in
LEAVES_OUT = 0.3  # share of changes
ADDITIONS = ("milkAmount", "sugarAmount")
AMOUNT = re.compile("(?:a lot of|a bit of) ")  # how an addition's value may begin


class Splicer:
    """Changes recordings whose words' times are known (`about["words"]`), by those of all of them."""

    def __init__(self, clips: list[Clip]):
        self._lenders: dict[str, list[tuple[Clip, slice]]] = defaultdict(list)
        self._amounts: list[tuple[Clip, slice]] = []
        for clip in clips:
            for slot, place in _places(clip).items():
                self._lenders[slot].append((clip, place))
                if slot in ADDITIONS and (amount := _amount(clip, slot, place)).start < amount.stop:
                    self._amounts.append((clip, amount))

    @property
    def slots(self) -> list[str]:
        """Those of which there are words."""
        return sorted(self._lenders)

    def another_order(self, draw: random.Random, clip: Clip) -> Clip:
        """The recording with up to three slots changed, and sometimes milk and sugar told the other way round."""
        for _ in range(draw.randint(0, 3)):
            places = _places(clip)
            if not places:
                return clip
            slot = draw.choice(sorted(places))
            if slot in AT_WILL and len(places) > 2 and draw.random() < LEAVES_OUT:
                clip = _without(clip, slot, places[slot])
            elif slot in ADDITIONS and draw.random() < 0.5:
                clip = self._another_amount(draw, clip, slot, places[slot])
            else:
                clip = _with(clip, slot, places[slot], *draw.choice(self._lenders[slot]))
        if draw.random() < 0.5 and all(slot in _places(clip) for slot in ADDITIONS):
            clip = _other_way_round(clip)
        return clip

    def value(self, draw: random.Random, slot: str) -> tuple[str, list[Any], np.ndarray]:
        """A slot's value, its words with their times, and their sound (int16); with the article right before them."""
        lender, lent = draw.choice(self._lenders[slot])
        before = lender.about["words"][max(0, lent.start - 1)][0]
        words = lender.about["words"][lent.start - (before in ("a", "an")) : lent.stop]
        return lender.about["slots"][slot], later(words, -words[0][1]), _sound_of(lender, words)

    def _another_amount(self, draw: random.Random, clip: Clip, slot: str, place: slice) -> Clip:
        """So much of the same: "lots of", "a bit of", "some", or no word about it."""
        amount, what = _amount(clip, slot, place), AMOUNT.sub("", clip.about["slots"][slot])
        if amount.start < amount.stop and draw.random() < 0.4:
            return _spliced(clip, amount, np.zeros(0, np.int16), [], clip.about["slots"] | {slot: what})
        lender, lent = draw.choice(self._amounts)
        so_much = plain(" ".join([*(word for word, _, _ in lender.about["words"][lent]), what]))
        return _spliced(clip, amount, *_fitted(clip, lender, lent), clip.about["slots"] | {slot: so_much})


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


def _amount(clip: Clip, slot: str, place: slice) -> slice:
    """Which of the words of an addition say how much of it; none, before the first, where none does."""
    words = [word for word, _, _ in clip.about["words"]]
    amount = AMOUNT.match(clip.about["slots"][slot])
    wanted = plain((amount[0] if amount else "") + "it")
    ends = [
        end for end in range(place.start, place.stop) if plain(" ".join([*words[place.start : end], "it"])) == wanted
    ]
    return slice(place.start, ends[-1])


def _with(clip: Clip, slot: str, place: slice, lender: Clip, lent: slice) -> Clip:
    return _spliced(
        clip, place, *_fitted(clip, lender, lent), clip.about["slots"] | {slot: lender.about["slots"][slot]}
    )


def _without(clip: Clip, slot: str, place: slice) -> Clip:
    slots = {name: value for name, value in clip.about["slots"].items() if name != slot}
    return _spliced(clip, place, np.zeros(0, np.int16), [], slots)


def _other_way_round(clip: Clip) -> Clip:
    """Milk and sugar, each in the other's place."""
    first, second = sorted((_places(clip)[slot] for slot in ADDITIONS), key=lambda place: place.start)
    slots = clip.about["slots"]
    changed = _spliced(clip, second, *_fitted(clip, clip, first), slots)  # the later one first: what is before it stays
    return _spliced(changed, first, *_fitted(clip, clip, second), slots)


def _fitted(clip: Clip, lender: Clip, lent: slice) -> tuple[np.ndarray, list[Any]]:
    """A lender's words for another recording: their sound, as loud as it is there, and the words."""
    words = lender.about["words"][lent]
    sound, there = _sound_of(lender, words), _sound_of(clip, clip.about["words"])
    sound = sound * gain(_sound_of(lender, lender.about["words"]), there)
    return sound.clip(-32768, 32767).astype(np.int16), words


def _spliced(clip: Clip, place: slice, sound: np.ndarray, put_in: list[Any], slots: dict[str, str]) -> Clip:
    """A recording with other words, and their sound, at the place of some; all that follows is so much later."""
    words = clip.about["words"]
    begin_s = words[place.start][1]
    end_s = words[place.stop - 1][2] if place.start < place.stop else begin_s
    later_s = (_length_s(put_in) if put_in else 0.0) - (end_s - begin_s)
    placed = later(put_in, begin_s - put_in[0][1]) if put_in else []
    all_words = [*words[: place.start], *placed, *later(words[place.stop :], later_s)]
    about = clip.about | {
        "words": all_words,
        "text": " ".join(word for word, _, _ in all_words),
        "slots": slots,
        "extent": (all_words[0][1], all_words[-1][2]),
    }
    begin, end = int(begin_s * INPUT_HZ), int(end_s * INPUT_HZ)
    return Clip(np.concatenate([clip.samples[:begin], sound, clip.samples[end:]]), about)


def _sound_of(clip: Clip, words: list[Any]) -> np.ndarray:
    return clip.samples[int(words[0][1] * INPUT_HZ) : int(words[-1][2] * INPUT_HZ)].astype(np.float32)


def _length_s(words: list[Any]) -> float:
    return float(words[-1][2] - words[0][1])


def gain(sound: np.ndarray, there: np.ndarray) -> float:
    """What makes a sound as loud as another, within reason."""
    return min(LOUDEST, float(there.std()) / max(1.0, float(sound.std())))


def later(words: list[Any], seconds: float) -> list[tuple[str, float, float]]:
    """Words with their times, moved."""
    return [(word, begin + seconds, end + seconds) for word, begin, end in words]
