"""Resampling of a stream."""

from __future__ import annotations

from functools import cache

import numpy as np
import soxr


class Resampler:
    """A band-limited resampler of a stream of int16; the result does not depend on how the stream is cut: no dither.

    soxr's mode for variable rates: its filter delays by 10 ms (24 to 16 kHz); the other mode works in blocks and delays
    by up to 37 ms. With `at_once` the stream begins with silence of that delay, so that the number of samples out
    follows the number of samples in: a tick does not wait for one more frame of the microphone.
    """

    def __init__(self, rate: int, to: int, at_once: bool = False):
        self._stream = soxr.ResampleStream(rate, to, 1, dtype="float32", vr=True)
        self._ratio = to / rate
        self._silence = _delay(rate, to) if at_once else 0  # samples of silence still to be returned
        self.delay_ms = 1000 * self._silence / to

    def feed(self, samples: np.ndarray, last: bool = False) -> np.ndarray:
        """Return the int16 samples that the next stretch completes; `last` also returns the filter's rest."""
        found = self._stream.resample_chunk(samples.astype(np.float32), last=last)
        silence = self._silence if len(found) else min(self._silence, round(len(samples) * self._ratio))
        self._silence -= silence
        pcm = np.clip(np.rint(found), -32768, 32767).astype(np.int16)
        return np.pad(pcm, (silence, 0)) if silence else pcm


@cache
def _delay(rate: int, to: int) -> int:
    """Return the delay of soxr's filter in samples at the rate `to`."""
    stream = soxr.ResampleStream(rate, to, 1, dtype="float32", vr=True)
    return to - len(stream.resample_chunk(np.zeros(rate, np.float32)))
