"""Sound of the protocol's formats; G.711 is libsndfile's."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import soundfile
import soxr

from frontend.realtime.events import RealtimeError
from frontend.realtime.sound import Loudspeaker, Microphone

G711 = {"audio/pcmu": "ULAW", "audio/pcma": "ALAW"}
DRAWN = np.random.default_rng(1)
SOUND = (DRAWN.standard_normal(24_000).cumsum() * 40).clip(-32768, 32767).astype(np.int16)


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def by_libsndfile(codes: bytes, kind: str) -> np.ndarray:
    file = io.BytesIO(codes)
    return soundfile.read(file, dtype="int16", format="RAW", subtype=G711[kind], samplerate=8000, channels=1)[0]


def resampled(samples: np.ndarray, rate: int, to: int) -> np.ndarray:
    """A whole sound at another rate, not rounded and not clipped; then cut to what int16 holds."""
    return np.clip(soxr.resample(samples.astype(np.float32), rate, to), -32768, 32767)


@pytest.mark.parametrize("kind", G711)
def test_every_g711_code_is_heard_as_libsndfile_reads_it(kind: str):
    codes = bytes(range(256)) * 8
    expected = resampled(by_libsndfile(codes, kind), 8000, 16_000)
    heard = np.frombuffer(Microphone(kind).feed(encoded(codes)), np.int16)
    assert len(heard) > 2000
    assert np.abs(heard - expected[: len(heard)]).max() <= 0.5, "a rounding"


@pytest.mark.parametrize("kind", G711)
def test_g711_that_is_sent_is_within_half_a_step_of_the_sound(kind: str):
    codes = base64.b64decode(Loudspeaker(kind).feed(SOUND.tobytes(), last=True))
    wanted = resampled(SOUND, 24_000, 8000)
    found = by_libsndfile(codes, kind).astype(int)
    assert len(found) == len(wanted)
    assert (np.abs(found - wanted) <= np.maximum(16, np.abs(wanted) / 16)).all()


def test_sound_is_the_same_however_it_is_cut():
    """In pieces of odd numbers of bytes."""
    data, whole, cut = SOUND.tobytes(), Microphone("audio/pcm"), Microphone("audio/pcm")
    pieces = b"".join(cut.feed(encoded(data[start : start + 977])) for start in range(0, len(data), 977))
    once = whole.feed(encoded(data))
    shorter = min(len(pieces), len(once))
    assert shorter > 0.95 * len(data) * 2 / 3, "the rest is the resampler's delay"
    assert pieces[:shorter] == once[:shorter]


@pytest.mark.parametrize("audio", ["no base64!", 7, None])
def test_what_is_no_base64_is_refused(audio: object):
    with pytest.raises(RealtimeError, match="expected base64"):
        Microphone("audio/pcm").feed(audio)
