"""A file of sound as a microphone would have given it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
import soxr

from config.settings import INPUT_HZ


class SoundError(ValueError):
    """A file is no sound; the message names it and says why."""


def read_sound(path: Path) -> np.ndarray:
    """Any rate and any number of channels as float32 samples at 16 kHz. Raises `SoundError`."""
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (OSError, soundfile.LibsndfileError) as error:
        raise SoundError(f"{path} cannot be read as sound: {error}") from error
    mono = samples.mean(axis=1)
    return np.asarray(mono if rate == INPUT_HZ else soxr.resample(mono, rate, INPUT_HZ), np.float32)


def to_pcm16(samples: np.ndarray) -> np.ndarray:
    """Samples between -1 and 1 as int16."""
    return np.asarray(np.clip(np.round(samples * 32768.0), -32768, 32767), np.int16)
