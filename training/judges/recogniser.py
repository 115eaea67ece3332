"""Speech recognition that is independent of this project's training: pocketsphinx with its own English model."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
import pocketsphinx
import soxr

from config.settings import INPUT_HZ

PAD_S = 0.3  # silence added before and after a sentence, in seconds
PRONUNCIATION = re.compile(r"\(\d+\)$")
NUMERALS = {"ok": "okay"}


class Word(NamedTuple):
    """A recognised word and its position in the audio."""

    text: str
    begin_s: float
    end_s: float


class Recogniser:
    """A speech-to-text decoder."""

    def __init__(self) -> None:
        self._decoder = pocketsphinx.Decoder(loglevel="FATAL")

    def transcribe(self, samples: np.ndarray, rate: int) -> str:
        """Return the words of `samples`, int16 at any rate, in lower case."""
        self._decode(samples, rate)
        hypothesis = self._decoder.hyp()
        return str(hypothesis.hypstr) if hypothesis else ""

    def words(self, samples: np.ndarray, rate: int) -> list[Word]:
        """Return the words of `samples` with their begin and end in seconds."""
        self._decode(samples, rate)
        return [
            Word(
                PRONUNCIATION.sub("", segment.word),
                segment.start_frame / 100 - PAD_S,
                (segment.end_frame + 1) / 100 - PAD_S,
            )
            for segment in self._decoder.seg() or ()
            if segment.word[0] not in "<["  # silence and noise
        ]

    def _decode(self, samples: np.ndarray, rate: int) -> None:
        audio = soxr.resample(samples.astype(np.float32) / 32768, rate, INPUT_HZ)
        audio = np.pad(audio / max(1e-4, float(np.abs(audio).max(initial=0))) * 0.6, int(PAD_S * INPUT_HZ))
        self._decoder.start_utt()
        self._decoder.process_raw((audio * 32767).astype(np.int16).tobytes(), full_utt=True)
        self._decoder.end_utt()


def words_of(text: str) -> list[str]:
    """Return the words of a sentence in the recogniser's spelling."""
    return [NUMERALS.get(word, word) for word in re.findall(r"[a-z']+", text.lower())]


def word_errors(hypothesis: Sequence[Hashable], reference: Sequence[Hashable]) -> int:
    """Return the number of insertions, deletions and substitutions (Levenshtein), of words or of tokens."""
    row = list(range(len(reference) + 1))
    for i, word in enumerate(hypothesis, 1):
        before, row = row, [i]
        for j, other in enumerate(reference, 1):
            row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (word != other)))
    return row[-1]
