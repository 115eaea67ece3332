"""Data augmentation by reverberation, noise, microphones and speed perturbation. float32 samples at 16 kHz."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import soxr
from scipy.fft import irfft, next_fast_len, rfft, rfftfreq
from scipy.signal import butter, fftconvolve, sosfilt

from config.settings import INPUT_HZ


def noise(draw: random.Random, length: int) -> np.ndarray:
    """Return coloured noise, hum, a chord or a melody with standard deviation 1, as input without speech."""
    generator = np.random.default_rng(draw.getrandbits(32))
    kind = draw.random()
    if kind < 0.25:
        sound = melody(draw, length) + 0.02 * generator.standard_normal(length)
    elif kind < 0.75:
        size = next_fast_len(length, real=True)
        spectrum = rfft(generator.standard_normal(size, np.float32))
        frequency = np.maximum(rfftfreq(size, 1 / INPUT_HZ), 20.0).astype(np.float32)
        colour = draw.uniform(0.0, 2.2)  # exponent of the power spectrum: 0 white, 1 pink, 2 brown
        sound = irfft(spectrum * frequency ** (-colour / 2), size)[:length]
    else:
        time = np.arange(length) / INPUT_HZ
        base = draw.uniform(45, 500)
        partials = draw.sample(range(1, 9), draw.randint(1, 6))
        sound = sum(np.sin(2 * np.pi * base * k * time + draw.uniform(0, 6.3)) / k for k in partials)
        sound = sound * (1 + 0.5 * np.sin(2 * np.pi * draw.uniform(0.2, 5) * time)) + 0.05 * generator.standard_normal(
            length
        )
    return (sound / max(1e-6, float(sound.std()))).astype(np.float32)


def melody(draw: random.Random, length: int) -> np.ndarray:
    """Return a sequence of decaying notes and chords, struck or plucked."""
    sound = np.zeros(length)
    base, partials, begin = draw.uniform(80, 500), draw.randint(2, 16), 0
    even = draw.random() < 0.5  # partials with amplitude 1/k, or with random amplitudes
    string = draw.choice((0.0, draw.uniform(0.2, 1.5)))  # additional decay of each partial relative to the one below
    while begin < length:
        time = np.arange(min(length - begin, 2 * INPUT_HZ)) / INPUT_HZ
        fading, attack = draw.uniform(0.5, 8), np.minimum(1, time * draw.uniform(10, 400))
        for step in draw.sample((0, 2, 4, 5, 7, 9, 11, 12, 16, 19), draw.choice((1, 1, 2, 3))):
            pitch = base * 2 ** (step / 12)
            strength = [1 / k if even else draw.random() for k in range(1, partials + 1)]
            sound[begin : begin + len(time)] += attack * sum(
                strength[k - 1]
                * np.sin(2 * np.pi * pitch * k * time + (0 if even else draw.uniform(0, 6.3)))
                * np.exp(-time * fading * (1 + string * (k - 1)))
                for k in range(1, partials + 1)
            )
        begin += int(draw.uniform(0.12, 0.8) * INPUT_HZ)
    return sound


def babble(draw: random.Random, others: Sequence[np.ndarray], length: int) -> np.ndarray:
    """Return several speakers at once, with standard deviation 1. `others`: int16 clips."""
    total = np.zeros(length, np.float32)
    for _ in range(draw.randint(2, 6)):
        voice = draw.choice(others).astype(np.float32) / 32768
        total += np.resize(np.roll(voice, draw.randrange(len(voice))), length) * draw.uniform(0.4, 1.0)
    return total / max(1e-6, float(total.std()))


def perturb_speed(samples: np.ndarray, factor: float) -> np.ndarray:
    """Multiply pitch, formants and rate by `factor`, by resampling (speed perturbation)."""
    return np.asarray(soxr.resample(samples, INPUT_HZ * factor, INPUT_HZ, quality="LQ"), np.float32)


def room(draw: random.Random, samples: np.ndarray) -> np.ndarray:
    """Add reverberation: exponentially decaying noise after the direct sound."""
    generator = np.random.default_rng(draw.getrandbits(32))
    decay = draw.uniform(0.08, 0.6)  # reverberation time (60 dB) in seconds
    tail = generator.standard_normal(int(INPUT_HZ * decay), np.float32) * 10 ** (
        -3 * np.arange(int(INPUT_HZ * decay)) / (INPUT_HZ * decay)
    )
    tail[: int(INPUT_HZ * draw.uniform(0.001, 0.02))] = 0.0
    tail *= draw.uniform(0.1, 0.8) / max(1e-6, float(np.sqrt((tail**2).sum())))
    tail[0] = 1.0
    return fftconvolve(samples, tail)[: len(samples)].astype(np.float32)


def microphone(draw: random.Random, samples: np.ndarray) -> np.ndarray:
    """Apply a band limit, a high-pass filter, or clipping."""
    if draw.random() < 0.5:
        samples = sosfilt(butter(2, draw.uniform(2800, 7600), fs=INPUT_HZ, output="sos"), samples)
    if draw.random() < 0.5:
        samples = sosfilt(butter(1, draw.uniform(40, 500), "highpass", fs=INPUT_HZ, output="sos"), samples)
    if draw.random() < 0.15:
        peak = float(np.abs(samples).max())
        samples = np.clip(samples, -peak * 0.4, peak * 0.4)
    return np.asarray(samples, np.float32)


class Augmented(NamedTuple):
    """An augmented clip: time t in seconds of the original is at `begin_s + t / rate`."""

    samples: np.ndarray  # float32
    begin_s: float
    rate: float


def augmented(
    draw: random.Random, samples: np.ndarray, others: Sequence[np.ndarray], strength: float = 1.0
) -> Augmented:
    """Return a clip as from another speaker in another place. `samples`: int16; `strength`: 0 (weak) to 1."""
    sound = samples.astype(np.float32) / 32768
    rate = draw.uniform(0.86, 1.18) if draw.random() < 0.7 * strength else 1.0
    if rate != 1.0:
        sound = perturb_speed(sound, rate)
    before, after = draw.uniform(0.1, 0.5), draw.uniform(0.05, 0.6)
    if draw.random() < 0.25:  # a late commit, and an early begin of the turn
        before, after = draw.uniform(0.3, 3), draw.uniform(0.3, 3)
    sound = np.pad(sound, (int(before * INPUT_HZ), int(after * INPUT_HZ)))
    if draw.random() < 0.4 * strength:
        sound = room(draw, sound)
    level = max(1e-4, float(np.sqrt((sound**2).mean())))
    if draw.random() < 0.75:
        sound = sound + noise(draw, len(sound)) * level * 10 ** (-draw.uniform(40 - 32 * strength, 45) / 20)
    if draw.random() < 0.4 * strength:
        sound = sound + babble(draw, others, len(sound)) * level * 10 ** (-draw.uniform(3, 28) / 20)
    if draw.random() < 0.5 * strength:
        sound = microphone(draw, sound)
    gain = 10 ** (-draw.uniform(0.5, 24) / 20) / max(1e-4, float(np.abs(sound).max()))
    return Augmented(np.clip(sound * gain, -1, 1), before, rate)
