"""Training dialogues of the thinker: tokens, positions of audio, and the tokens to predict."""

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
    """Tokens with the audio of the user's spoken turns; `place_audio` inserts its tokens when their number is known."""

    ids: list[int] = field(default_factory=list)
    predicted: list[bool] = field(default_factory=list)  # mask of the tokens that the thinker has to predict
    audio: list[tuple[int, Any]] = field(default_factory=list)  # position of <|audio_pad|>, and its audio

    def add(self, ids: list[int], predicted: bool = False) -> None:
        """Append tokens."""
        self.ids += ids
        self.predicted += [predicted] * len(ids)


def utterance_of(about: dict[str, Any]) -> Utterance:
    """Return the meaning of a clip from its metadata."""
    return Utterance(about["text"], about["kind"], about["slots"], tuple(about["removed"]))


class ClipLibrary:
    """Clips of users by kind of utterance."""

    def __init__(self) -> None:
        self.by_kind: dict[str, list[tuple[Utterance, Any]]] = defaultdict(list)

    def add(self, about: dict[str, Any], audio: Any) -> None:
        """Add a clip; `about`: the fields of `Utterance`."""
        utterance = utterance_of(about)
        self.by_kind[utterance.kind].append((utterance, audio))

    def draw(self, draw: random.Random, kind: str) -> tuple[Utterance, Any] | None:
        """Draw a clip of a kind; None if the library has no such clip."""
        kind = "change" if kind in ("size", "roast") else kind
        return draw.choice(self.by_kind[kind]) if self.by_kind.get(kind) else None


def vary_typing(draw: random.Random, text: str) -> str:
    """Return a sentence with typical variations of typing: digits, capitals, punctuation."""
    for words, forms in DIGITS.items():
        if words in text and draw.random() < 0.3:
            text = text.replace(words, draw.choice(forms))
    style = draw.random()
    if style < 0.4:
        text = text[:1].upper() + text[1:]
    elif style < 0.5:
        text = text.lower()
    if draw.random() < 0.6:
        text += draw.choice((".", ".", "?", "!"))
    return text


class Writer:
    """Writer of dialogues with one checkpoint's tokenizer and chat format."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        self._tokenizer = tokenizer
        self.audio_id = int(tokenizer.convert_tokens_to_ids("<|audio_pad|>"))
        self._user, self._assistant = self.encode("<|im_start|>user\n"), self.encode("<|im_start|>assistant\n")
        self._end, self._line = self.encode("<|im_end|>"), self.encode("\n")
        self._audio_start, self._audio_end = self.encode("<|audio_start|>"), self.encode("<|audio_end|>")

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text."""
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def decode(self, ids: list[int]) -> str:
        """Return the text of tokens."""
        return str(self._tokenizer.decode(ids))

    def encode_speech(self, text: str) -> list[int]:
        """Return the tokens of a transcript of speech: lower case, no punctuation."""
        words = text.lower().replace(",", " ").replace("?", " ").split()
        return self.encode(" " + " ".join(words)) if words else []

    def write(self, draw: random.Random, library: ClipLibrary | None, turns: int, spoken: float = 0.6) -> Dialogue:
        """Return a random dialogue; each turn is spoken with the probability `spoken` if the library has such a clip.

        Without a library the audio of a spoken turn is the utterance, from which an encoder's output can be simulated.
        """
        dialogue, barista = Dialogue(), Barista()
        if draw.random() < 0.1:
            dialogue.add(self.encode(f"<|im_start|>system\n{draw.choice(SYSTEM_PROMPTS)}<|im_end|>\n"))
        for turn in range(turns):
            kind = grammar.next_kind(draw, barista)
            utterance: Utterance = grammar.utterance(draw, kind)
            audio: Any = None
            if draw.random() < spoken:
                if library is None:
                    audio = utterance
                elif draw.random() < 0.08 and library.by_kind.get("noise"):
                    utterance, audio = library.draw(draw, "noise")  # type: ignore[misc]
                elif clip := library.draw(draw, kind):
                    utterance, audio = clip
            self.turn(dialogue, utterance, audio, draw)
            self.answer(dialogue, barista.answer(utterance), draw if turn < turns - 1 else None)
        return dialogue

    def turn(self, dialogue: Dialogue, utterance: Utterance, audio: Any, draw: random.Random) -> None:
        """Append a user's turn, which is spoken if `audio` is not None and typed otherwise."""
        dialogue.add(self._user[:-1])
        if audio is None:
            dialogue.add(self.encode("\n" + vary_typing(draw, utterance.text)))
        else:
            dialogue.add([*self._user[-1:], *self._audio_start])
            dialogue.audio.append((len(dialogue.ids), audio))
            dialogue.add([self.audio_id, *self._audio_end])
        dialogue.add([*self._end, *self._line])

    def answer(self, dialogue: Dialogue, text: str, cuts: random.Random | None = None) -> None:
        """Append the barista's answer; with `cuts`, some are truncated as by an interruption."""
        dialogue.add(self._assistant)
        ids = self.encode(text)
        if cuts and cuts.random() < 0.4 and ids:
            dialogue.add(ids[: cuts.randrange(len(ids))], predicted=True)
            dialogue.add(self._end)
        else:
            dialogue.add([*ids, *self._end], predicted=True)
        dialogue.add(self._line)


def place_audio(dialogue: Dialogue, lengths: list[int], audio_id: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Insert the audio tokens, `lengths` for each audio; return ids, masks of predicted and of audio tokens."""
    ids, predicted, is_audio, done = [], [], [], 0
    for (position, _), length in zip(dialogue.audio, lengths, strict=True):
        ids += [*dialogue.ids[done:position], *[audio_id] * length]
        predicted += [*dialogue.predicted[done:position], *[False] * length]
        is_audio += [*[False] * (position - done), *[True] * length]
        done = position + 1
    ids += dialogue.ids[done:]
    predicted += dialogue.predicted[done:]
    is_audio += [False] * (len(dialogue.ids) - done)
    return np.array(ids), np.array(predicted), np.array(is_audio)
