"""Times of the words of a sentence, by pocketsphinx's forced alignment, and of its tokens, by their words."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
import pocketsphinx
from transformers import PreTrainedTokenizerFast


class Aligner:
    """Alignment of sentences with their audio."""

    def __init__(self) -> None:
        self._decoder = pocketsphinx.Decoder(lm=None, loglevel="FATAL")

    def words(self, pcm: np.ndarray, text: str) -> list[tuple[str, float, float]] | None:
        """Return words with begin and end in seconds; None if the alignment fails. `pcm`: int16, 16 kHz."""
        words = re.sub(r"[^a-z' ]", " ", text.lower()).split()
        if not words or any(self._decoder.lookup_word(word) is None for word in words):
            return None
        self._decoder.set_align_text(" ".join(words))
        self._decoder.start_utt()
        self._decoder.process_raw(pcm.tobytes(), full_utt=True)
        self._decoder.end_utt()
        if self._decoder.hyp() is None:
            return None
        timed = timed_words(self._decoder)
        return timed if [word for word, _, _ in timed] == words else None


def token_starts(text: str, word_starts: Sequence[float], tokenizer: PreTrainedTokenizerFast) -> np.ndarray:
    """Return the begin of each token of a sentence in seconds, which is the begin of its word.

    `word_starts`: begins of the words between spaces; punctuation belongs to the word before it.
    """
    ends = [match.end() for match in re.finditer(r"\S+", text)]
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return np.array([word_starts[min(bisect_left(ends, end), len(ends) - 1)] for _, end in offsets])


def timed_words(decoder: pocketsphinx.Decoder) -> list[tuple[str, float, float]]:
    """Return a decoder's words with begin and end in seconds, without silence and noise."""
    return [
        (segment.word.split("(")[0], segment.start_frame / 100, (segment.end_frame + 1) / 100)
        for segment in decoder.seg()
        if not segment.word.startswith(("<", "[", "("))
    ]
