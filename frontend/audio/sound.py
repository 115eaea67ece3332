"""Sound of the protocol's three formats to the engine's rates and back: PCM16 at 24 kHz, mu-law and A-law at 8 kHz."""

from __future__ import annotations

import base64
import binascii
from functools import cache
from typing import Any

import numpy as np
import soxr

from config.loader import shown
from config.settings import INPUT_HZ, OUTPUT_HZ
from frontend.realtime.events import RealtimeError

RATES = {"audio/pcm": 24_000, "audio/pcmu": 8_000, "audio/pcma": 8_000}


class Resampler:
    """A band-limited resampler of a stream of int16, the same however the stream is cut: it adds no dither.

    soxr's way for variable rates: its filter holds back 10 ms (24 to 16 kHz), where the other works in blocks and is up
    to 37 ms behind. With `at_once` the stream begins with that much silence, so that as many samples come as went in:
    who waits for a number of them waits for no further frame of the microphone.
    """

    def __init__(self, rate: int, to: int, at_once: bool = False):
        self._stream = soxr.ResampleStream(rate, to, 1, dtype="float32", vr=True)
        self._ratio = to / rate
        self._silence = _held_back(rate, to) if at_once else 0  # samples that are still to come
        self.delay_ms = 1000 * self._silence / to

    def feed(self, samples: np.ndarray, last: bool = False) -> np.ndarray:
        """The samples, int16, that the next stretch completes; `last` gives what is held."""
        found = self._stream.resample_chunk(samples.astype(np.float32), last=last)
        silence = self._silence if len(found) else min(self._silence, round(len(samples) * self._ratio))
        self._silence -= silence
        pcm = np.clip(np.rint(found), -32768, 32767).astype(np.int16)
        return np.pad(pcm, (silence, 0)) if silence else pcm


@cache
def _held_back(rate: int, to: int) -> int:
    """Samples, at the rate `to`, that soxr's filter waits for."""
    stream = soxr.ResampleStream(rate, to, 1, dtype="float32", vr=True)
    return to - len(stream.resample_chunk(np.zeros(rate, np.float32)))


class Microphone:
    """One client's sound to PCM16 at 16 kHz, however it is cut into events; odd bytes wait for their other half.

    `at_once` is for sound that is being spoken: it is `delay_ms` later, and all there. Without it `end` gives the rest.
    """

    def __init__(self, kind: str, at_once: bool = True):
        self._kind, self._rest = kind, b""
        self._resampler = Resampler(RATES[kind], INPUT_HZ, at_once)
        self.delay_ms = self._resampler.delay_ms

    def feed(self, audio: Any) -> bytes:
        """The PCM16 of an event's base64. Raises `RealtimeError`."""
        if not isinstance(audio, str):
            raise RealtimeError(f"audio is {shown(audio)}, expected base64", param="audio")
        try:
            data = base64.b64decode(audio, validate=True)
        except (binascii.Error, ValueError):
            raise RealtimeError(f"audio is {shown(audio)}, expected base64", param="audio") from None
        if self._kind != "audio/pcm":
            samples = _expansion(self._kind)[np.frombuffer(data, np.uint8)]
        else:
            data = self._rest + data
            whole = len(data) // 2 * 2
            self._rest = data[whole:]
            samples = np.frombuffer(data[:whole], np.int16)
        return self._resampler.feed(samples).tobytes()

    def end(self) -> bytes:
        """What the resampler still holds; nothing can be fed any more."""
        return self._resampler.feed(np.zeros(0, np.int16), last=True).tobytes()


class Loudspeaker:
    """PCM16 at 24 kHz to one client's format, as base64."""

    def __init__(self, kind: str):
        self._kind = kind
        self._resampler = None if kind == "audio/pcm" else Resampler(OUTPUT_HZ, RATES[kind])

    def feed(self, pcm: bytes, last: bool = False) -> str:
        """The next stretch; `last` gives what the resampler still holds."""
        if self._resampler is None:
            return base64.b64encode(pcm).decode()
        samples = self._resampler.feed(np.frombuffer(pcm, np.int16), last)
        return base64.b64encode(_compress(samples, self._kind).tobytes()).decode()


def _compress(samples: np.ndarray, kind: str) -> np.ndarray:
    """G.711 codes of samples: the code whose value is nearest."""
    order, borders = _steps(kind)
    return order[np.searchsorted(borders, samples)]


@cache
def _steps(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """The codes by their samples, and the borders half way between these."""
    values = _expansion(kind).astype(np.int32)
    order = np.argsort(values, kind="stable")
    return order.astype(np.uint8), (values[order][1:] + values[order][:-1]) / 2


@cache
def _expansion(kind: str) -> np.ndarray:
    """The sample of each of the 256 codes, as ITU-T G.711 defines them, scaled to 16 bits."""
    codes = np.arange(256)
    if kind == "audio/pcmu":
        codes = ~codes & 0xFF
        magnitude = (((codes & 0x0F) << 3) + 0x84 << (codes >> 4 & 7)) - 0x84
        return np.where(codes & 0x80, -magnitude, magnitude).astype(np.int16)
    codes = codes ^ 0x55
    exponent, mantissa = codes >> 4 & 7, codes & 0x0F
    magnitude = np.where(exponent == 0, (mantissa << 4) + 8, (mantissa << 4) + 0x108 << np.maximum(exponent - 1, 0))
    return np.where(codes & 0x80, magnitude, -magnitude).astype(np.int16)
