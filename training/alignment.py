"""When each token of a sentence is spoken, by pocketsphinx's forced alignment."""

from __future__ import annotations

import re

import numpy as np
import pocketsphinx
import soxr
from transformers import PreTrainedTokenizerFast

from config.settings import INPUT_HZ, OUTPUT_HZ


class Aligner:
    """Aligns sentences to their sound."""

    def __init__(self) -> None:
        self._decoder = pocketsphinx.Decoder(lm=None, loglevel="FATAL")

    def words(self, pcm: np.ndarray, text: str) -> list[tuple[str, float, float]] | None:
        """Words with their start and end in seconds; None if the alignment fails. `pcm`: int16, 16 kHz."""
        words = re.sub(r"[^a-z' ]", " ", text.lower()).split()
        if not words or any(self._decoder.lookup_word(word) is None for word in words):
            return None
        self._decoder.set_align_text(" ".join(words))
        self._decoder.start_utt()
        self._decoder.process_raw(pcm.tobytes(), full_utt=True)
        self._decoder.end_utt()
        if self._decoder.hyp() is None:
            return None
        found = timed_words(self._decoder)
        return found if [word for word, _, _ in found] == words else None

    def token_starts(self, samples: np.ndarray, text: str, tokenizer: PreTrainedTokenizerFast) -> np.ndarray | None:
        """When each token of a sentence begins, in seconds; None if the alignment fails. `samples`: int16, 24 kHz.

        A token is spoken from where its word is; punctuation goes with the word before it.
        """
        pcm = soxr.resample(samples.astype(np.float32) / 32768, OUTPUT_HZ, INPUT_HZ)
        found = self.words((pcm * 32767).astype(np.int16), text)
        if found is None:
            return None
        spans = [match.span() for match in re.finditer(r"[A-Za-z']+", text)]
        times, word = [], 0
        for _, end in tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]:
            while word + 1 < len(spans) and spans[word + 1][0] < end:
                word += 1
            times.append(found[word][1])
        return np.array(times)


def timed_words(decoder: pocketsphinx.Decoder) -> list[tuple[str, float, float]]:
    """What a decoder has heard: words with their start and end in seconds, silence and noise left out."""
    return [
        (segment.word.split("(")[0], segment.start_frame / 100, (segment.end_frame + 1) / 100)
        for segment in decoder.seg()
        if not segment.word.startswith(("<", "[", "("))
    ]
