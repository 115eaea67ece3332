"""Conversion of an audio file to the format of the microphone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
import soxr

from config.settings import INPUT_HZ


class SoundError(ValueError):
    """A file cannot be read as audio; the message contains its name and the reason."""


def read_sound(path: Path) -> np.ndarray:
    """Read a file of any rate and number of channels as float32 samples at 16 kHz, mono; raise `SoundError`."""
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (OSError, soundfile.LibsndfileError) as error:
        raise SoundError(f"{path} cannot be read as sound: {error}") from error
    mono = samples.mean(axis=1)
    return np.asarray(mono if rate == INPUT_HZ else soxr.resample(mono, rate, INPUT_HZ), np.float32)


def to_pcm16(samples: np.ndarray) -> np.ndarray:
    """Convert samples between -1 and 1 to int16."""
    return np.asarray(np.clip(np.round(samples * 32768.0), -32768, 32767), np.int16)
