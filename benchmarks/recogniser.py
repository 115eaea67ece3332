"""A speech recogniser that nobody here trained: pocketsphinx with its own English model."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
import pocketsphinx
import soxr

from config.settings import INPUT_HZ

PAD_S = 0.3  # seconds of silence around a sentence
PRONUNCIATION = re.compile(r"\(\d+\)$")
NUMERALS = {"ok": "okay"}


class Word(NamedTuple):
    """A word that was heard."""

    text: str
    begin_s: float
    end_s: float


class Recogniser:
    """Writes down speech."""

    def __init__(self) -> None:
        self._decoder = pocketsphinx.Decoder(loglevel="FATAL")

    def transcribe(self, samples: np.ndarray, rate: int) -> str:
        """The words of `samples`, int16 at any rate, in small letters."""
        self._read(samples, rate)
        hypothesis = self._decoder.hyp()
        return str(hypothesis.hypstr) if hypothesis else ""

    def words(self, samples: np.ndarray, rate: int) -> list[Word]:
        """The same words with the seconds in which they are spoken."""
        self._read(samples, rate)
        return [
            Word(PRONUNCIATION.sub("", part.word), part.start_frame / 100 - PAD_S, (part.end_frame + 1) / 100 - PAD_S)
            for part in self._decoder.seg() or ()
            if part.word[0] not in "<["  # silence and noise
        ]

    def _read(self, samples: np.ndarray, rate: int) -> None:
        sound = soxr.resample(samples.astype(np.float32) / 32768, rate, INPUT_HZ)
        sound = np.pad(sound / max(1e-4, float(np.abs(sound).max(initial=0))) * 0.6, int(PAD_S * INPUT_HZ))
        self._decoder.start_utt()
        self._decoder.process_raw((sound * 32767).astype(np.int16).tobytes(), full_utt=True)
        self._decoder.end_utt()


def words_of(text: str) -> list[str]:
    """The words of a sentence as a recogniser writes them."""
    return [NUMERALS.get(word, word) for word in re.findall(r"[a-z']+", text.lower())]


def word_errors(heard: Sequence[Hashable], said: Sequence[Hashable]) -> int:
    """Insertions, deletions and substitutions between two sentences, of words or of tokens."""
    row = list(range(len(said) + 1))
    for i, word in enumerate(heard, 1):
        before, row = row, [i]
        for j, other in enumerate(said, 1):
            row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (word != other)))
    return row[-1]
