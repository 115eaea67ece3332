"""Sound of the protocol's formats; G.711 is libsndfile's."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import soundfile
import soxr

from frontend.audio.formats import AudioDecoder, AudioEncoder, AudioError
from frontend.audio.resampler import Resampler

G711 = {"audio/pcmu": "ULAW", "audio/pcma": "ALAW"}
SOON_S = 0.031  # 10 to 30 ms, the lower the rate the longer the filter
DRAWN = np.random.default_rng(1)
SOUND = (DRAWN.standard_normal(24_000).cumsum() * 40).clip(-32768, 32767).astype(np.int16)


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def by_libsndfile(codes: bytes, kind: str) -> np.ndarray:
    file = io.BytesIO(codes)
    return soundfile.read(file, dtype="int16", format="RAW", subtype=G711[kind], samplerate=8000, channels=1)[0]


def resampled(samples: np.ndarray, rate: int, to: int) -> np.ndarray:
    """Return audio at another rate, clipped to the range of int16."""
    stream = soxr.ResampleStream(rate, to, 1, dtype="float32", vr=True)
    return np.clip(stream.resample_chunk(samples.astype(np.float32), last=True), -32768, 32767)


def tone(rate: int, hz: float) -> np.ndarray:
    """Return two seconds of int16."""
    return np.rint(10_000 * np.sin(2 * np.pi * hz * np.arange(2 * rate) / rate)).astype(np.int16)


@pytest.mark.parametrize(("rate", "to"), [(24_000, 16_000), (8_000, 16_000), (48_000, 16_000), (24_000, 8_000)])
def test_resampler_passes_speech_and_removes_aliases_with_a_short_delay(rate: int, to: int):
    band = min(rate, to) / 2
    for hz in (100, 0.45 * band, 0.9 * band):
        found = Resampler(rate, to).feed(tone(rate, hz), last=True)
        expected = soxr.resample(tone(rate, hz).astype(np.float32), rate, to)
        loud = np.abs(np.fft.rfft(found)).argmax() * to / len(found)
        assert loud == pytest.approx(hz, abs=1)
        assert np.std(found) == pytest.approx(np.std(expected), rel=1e-3)
    if rate > to:
        folding = Resampler(rate, to).feed(tone(rate, 1.2 * band), last=True)
        assert np.abs(folding[to // 10 : -to // 10]).max() <= 1, "what is left is a rounding"
    stream, given = Resampler(rate, to), 0
    for number in range(50):
        given += len(stream.feed(tone(rate, 440)[number * rate // 50 : (number + 1) * rate // 50]))
        behind_s = (number + 1) / 50 - given / to
        assert behind_s <= SOON_S, "soxr's way by blocks is up to 37 ms behind from 24 to 16 kHz"


@pytest.mark.parametrize("kind", G711)
def test_each_g711_code_expands_as_in_libsndfile(kind: str):
    codes = bytes(range(256)) * 8
    expected = resampled(by_libsndfile(codes, kind), 8000, 16_000)
    microphone = AudioDecoder(kind, at_once=False)
    heard = np.frombuffer(microphone.feed(encoded(codes)) + microphone.end(), np.int16)
    assert len(heard) == len(expected) == 4096
    assert np.abs(heard - expected).max() <= 0.5, "a rounding"


@pytest.mark.parametrize("kind", G711)
def test_g711_codes_are_within_half_a_step_of_the_samples(kind: str):
    codes = base64.b64decode(AudioEncoder(kind).feed(SOUND.tobytes(), last=True))
    wanted = resampled(SOUND, 24_000, 8000)
    found = by_libsndfile(codes, kind).astype(int)
    assert len(found) == len(wanted)
    assert (np.abs(found - wanted) <= np.maximum(16, np.abs(wanted) / 16)).all()


def test_audio_is_independent_of_the_cuts():
    """In pieces of odd numbers of bytes."""
    data, whole, cut = SOUND.tobytes(), AudioDecoder("audio/pcm"), AudioDecoder("audio/pcm")
    pieces = b"".join(cut.feed(encoded(data[start : start + 977])) for start in range(0, len(data), 977))
    assert pieces == whole.feed(encoded(data))
    assert len(pieces) == len(data) * 2 // 3


@pytest.mark.parametrize(("rate", "frame"), [(24_000, 480), (24_000, 100), (8_000, 160), (8_000, 40), (48_000, 960)])
def test_audio_in_real_time_is_delayed_only_by_the_filter(rate: int, frame: int):
    """Whoever waits for a tick waits for no frame more than it is long."""
    samples, stream, found = tone(rate, 440), Resampler(rate, 16_000, at_once=True), np.zeros(0, np.int16)
    for start in range(0, len(samples), frame):
        found = np.append(found, stream.feed(samples[start : start + frame]))
        assert abs(len(found) - (start + frame) * 16_000 / rate) <= 1
    silence = round(stream.delay_ms * 16)
    assert 100 < silence < 500
    assert not found[:silence].any()
    whole = Resampler(rate, 16_000).feed(samples, last=True)
    assert np.array_equal(found[silence:], whole[: len(found) - silence])


@pytest.mark.parametrize("audio", ["no base64!", 7, None])
def test_audio_that_is_not_base64_is_refused(audio: object):
    with pytest.raises(AudioError, match="expected base64"):
        AudioDecoder("audio/pcm").feed(audio)
