"""Dialogues as the thinker reads them: tokens, places for sound, and which tokens it has to predict."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from training import grammar
from training.grammar import Barista, Utterance

SYSTEM_PROMPTS = (
    "You are a barista.",
    "You are a helpful assistant.",
    "You take orders in a coffee shop.",
    "Be brief.",
)
DIGITS = {"eight ounce": ("8 ounce", "8 oz", "8oz"), "twelve ounce": ("12 ounce", "12 oz", "12oz"),
          "sixteen ounce": ("16 ounce", "16 oz", "16oz"), "twenty ounce": ("20 ounce", "20 oz", "20oz"),
          "double shot": ("2 shots", "two shots"), "triple shot": ("3 shots",)}  # fmt: skip


@dataclass(slots=True)
class Dialogue:
    """`ids` with the sounds that belong to its runs of audio tokens, filled in when their lengths are known."""

    ids: list[int] = field(default_factory=list)
    predicted: list[bool] = field(default_factory=list)  # of each token, whether it is the thinker's to predict
    sounds: list[tuple[int, Any]] = field(default_factory=list)  # position of <|audio_pad|>, and the sound

    def add(self, ids: list[int], predicted: bool = False) -> None:
        """More tokens."""
        self.ids += ids
        self.predicted += [predicted] * len(ids)


def utterance_of(about: dict[str, Any]) -> Utterance:
    """What a clip means, of what is known of it."""
    return Utterance(about["text"], about["kind"], about["slots"], tuple(about["removed"]))


class Library:
    """Clips of users by what they mean, so that a dialogue can be made of those that there are."""

    def __init__(self) -> None:
        self.by_kind: dict[str, list[tuple[Utterance, Any]]] = defaultdict(list)

    def add(self, about: dict[str, Any], sound: Any) -> None:
        """A clip and what it means: the fields of `Utterance`."""
        said = utterance_of(about)
        self.by_kind[said.kind].append((said, sound))

    def draw(self, draw: random.Random, kind: str) -> tuple[Utterance, Any] | None:
        """A clip of a kind; none if there is none."""
        kind = "change" if kind in ("size", "roast") else kind
        return draw.choice(self.by_kind[kind]) if self.by_kind.get(kind) else None


def typed(draw: random.Random, text: str) -> str:
    """A sentence as people type it."""
    for words, forms in DIGITS.items():
        if words in text and draw.random() < 0.3:
            text = text.replace(words, draw.choice(forms))
    how = draw.random()
    if how < 0.4:
        text = text[:1].upper() + text[1:]
    elif how < 0.5:
        text = text.lower()
    if draw.random() < 0.6:
        text += draw.choice((".", ".", "?", "!"))
    return text


class Writer:
    """Writes dialogues with one checkpoint's tokenizer and chat format."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        self._tokenizer = tokenizer
        self.audio = int(tokenizer.convert_tokens_to_ids("<|audio_pad|>"))
        self._user, self._assistant = self.encode("<|im_start|>user\n"), self.encode("<|im_start|>assistant\n")
        self._end, self._line = self.encode("<|im_end|>"), self.encode("\n")
        self._audio_start, self._audio_end = self.encode("<|audio_start|>"), self.encode("<|audio_end|>")

    def encode(self, text: str) -> list[int]:
        """Tokens of a text."""
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def decode(self, ids: list[int]) -> str:
        """The text of tokens."""
        return str(self._tokenizer.decode(ids))

    def spoken(self, text: str) -> list[int]:
        """The tokens of what is said, as speech is transcribed: small letters, no punctuation."""
        words = text.lower().replace(",", " ").replace("?", " ").split()
        return self.encode(" " + " ".join(words)) if words else []

    def write(self, draw: random.Random, library: Library | None, turns: int, audio: float = 0.6) -> Dialogue:
        """A random dialogue; each turn is spoken with the probability `audio` if the library has such a clip.

        Without a library a spoken turn's sound is the utterance itself, for a stand-in of an encoder's output.
        """
        dialogue, barista = Dialogue(), Barista()
        if draw.random() < 0.1:
            dialogue.add(self.encode(f"<|im_start|>system\n{draw.choice(SYSTEM_PROMPTS)}<|im_end|>\n"))
        for turn in range(turns):
            kind = grammar.next_kind(draw, barista)
            said, sound = grammar.utterance(draw, kind), None
            if draw.random() < audio:
                if library is None:
                    sound = said
                elif draw.random() < 0.08 and library.by_kind.get("noise"):
                    said, sound = library.draw(draw, "noise")  # type: ignore[misc]
                elif clip := library.draw(draw, kind):
                    said, sound = clip
            self.turn(dialogue, said, sound, draw)
            self.answer(dialogue, barista.answer(said), draw if turn < turns - 1 else None)
        return dialogue

    def turn(self, dialogue: Dialogue, said: Utterance, sound: Any, draw: random.Random) -> None:
        """A user's turn, spoken where there is a sound."""
        dialogue.add(self._user[:-1])
        if sound is None:
            dialogue.add(self.encode("\n" + typed(draw, said.text)))
        else:
            dialogue.add([*self._user[-1:], *self._audio_start])
            dialogue.sounds.append((len(dialogue.ids), sound))
            dialogue.add([self.audio, *self._audio_end])
        dialogue.add([*self._end, *self._line])

    def answer(self, dialogue: Dialogue, text: str, cuts: random.Random | None = None) -> None:
        """The barista's answer; some are cut short, as by a user who interrupts."""
        dialogue.add(self._assistant)
        ids = self.encode(text)
        if cuts and cuts.random() < 0.4 and ids:
            dialogue.add(ids[: cuts.randrange(len(ids))], predicted=True)
            dialogue.add(self._end)
        else:
            dialogue.add([*ids, *self._end], predicted=True)
        dialogue.add(self._line)


def place_sounds(dialogue: Dialogue, lengths: list[int], audio: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids, which are predicted, and which are audio tokens, each sound being so many audio tokens long."""
    ids, predicted, is_audio, done = [], [], [], 0
    for (position, _), length in zip(dialogue.sounds, lengths, strict=True):
        ids += [*dialogue.ids[done:position], *[audio] * length]
        predicted += [*dialogue.predicted[done:position], *[False] * length]
        is_audio += [*[False] * (position - done), *[True] * length]
        done = position + 1
    ids += dialogue.ids[done:]
    predicted += dialogue.predicted[done:]
    is_audio += [False] * (len(dialogue.ids) - done)
    return np.array(ids), np.array(predicted), np.array(is_audio)
