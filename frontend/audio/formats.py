"""Audio in a client's format, as base64, to the engine's rates and back: PCM16 at 24 kHz, G.711 at 8 kHz."""

from __future__ import annotations

import base64
import binascii
from typing import Any

import numpy as np

from config.loader import shown
from config.settings import INPUT_HZ, OUTPUT_HZ
from frontend.audio.g711 import A_LAW, MU_LAW, compress, expand
from frontend.audio.pcm import SAMPLE_BYTES
from frontend.audio.resampler import Resampler

PCM = "audio/pcm"
RATES = {PCM: 24_000, MU_LAW: 8_000, A_LAW: 8_000}


class AudioError(ValueError):
    """Audio of a client that is not valid base64."""


class AudioDecoder:
    """One client's audio to PCM16 at 16 kHz, independent of its cuts; an odd byte waits for the next event.

    `at_once` is for audio that is being spoken: it is delayed by `delay_ms`, and complete. Without `at_once` the audio
    is not delayed, and `end` returns the rest.
    """

    def __init__(self, kind: str, at_once: bool = True):
        self._kind, self._rest = kind, b""
        self._resampler = Resampler(RATES[kind], INPUT_HZ, at_once)
        self.delay_ms = self._resampler.delay_ms

    def feed(self, audio: Any) -> bytes:
        """Return the PCM16 of an event's base64. Raises `AudioError`."""
        if not isinstance(audio, str):
            raise AudioError(f"audio: expected base64, got {shown(audio)}")
        try:
            data = base64.b64decode(audio, validate=True)
        except (binascii.Error, ValueError):
            raise AudioError(f"audio: expected base64, got {shown(audio)}") from None
        if self._kind != PCM:
            return self._resampler.feed(expand(np.frombuffer(data, np.uint8), self._kind)).tobytes()
        data = self._rest + data
        whole = len(data) // SAMPLE_BYTES * SAMPLE_BYTES
        self._rest = data[whole:]
        return self._resampler.feed(np.frombuffer(data[:whole], np.int16)).tobytes()

    def end(self) -> bytes:
        """Return the resampler's rest; nothing can be fed afterwards."""
        return self._resampler.feed(np.zeros(0, np.int16), last=True).tobytes()


class AudioEncoder:
    """PCM16 at 24 kHz to one client's format, as base64."""

    def __init__(self, kind: str):
        self._kind = kind
        self._resampler = None if kind == PCM else Resampler(OUTPUT_HZ, RATES[kind])

    def feed(self, pcm: bytes, last: bool = False) -> str:
        """Return the base64 of the next stretch; `last` also returns the resampler's rest."""
        if self._resampler is None:
            return base64.b64encode(pcm).decode()
        samples = self._resampler.feed(np.frombuffer(pcm, np.int16), last)
        return base64.b64encode(compress(samples, self._kind).tobytes()).decode()
