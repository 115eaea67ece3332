"""Sentences by flite's voices: `rms` and `slt` are held out of the training of the default checkpoint."""

from __future__ import annotations

import io
import subprocess

import numpy as np
import soundfile
import soxr

from config.settings import INPUT_HZ

HELD_OUT_VOICES = ("rms", "slt")


def synthesize(text: str, voice: str) -> np.ndarray:
    """Return a sentence by one of flite's voices, int16 at 16 kHz."""
    command = ["flite", "-voice", voice, "-t", text, "-o", "/dev/stdout"]
    wav = subprocess.run(command, capture_output=True, check=True)
    samples, rate = soundfile.read(io.BytesIO(wav.stdout), dtype="float32")
    return (soxr.resample(samples, rate, INPUT_HZ) * 32767).astype(np.int16)
