"""Audible faults of an answer's audio: gaps, clipping, and seams between one tick's audio and the next tick's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from config.settings import OUTPUT_HZ

FRAME = OUTPUT_HZ // 50  # samples, 20 ms
SILENT_DBFS = -45.0  # RMS of a frame
MAX_GAP_S = 0.5  # a longer gap separates two answers
CLIPPED = 32767
MARGIN = 240  # samples on each side of a border that the border is compared with, 10 ms


@dataclass(frozen=True)
class Seam:
    """Energy of the derivative at some positions divided by the energy around them: 1 on average without seams."""

    places: int
    ratio: float  # mean
    error: float  # standard error of the mean

    @classmethod
    def of(cls, ratios: Sequence[float]) -> Seam:
        """Compute the mean and its error from the ratio at each position."""
        error = float(np.std(ratios, ddof=1) / np.sqrt(len(ratios))) if len(ratios) > 1 else 0.0
        return cls(len(ratios), float(np.mean(ratios)) if ratios else 0.0, error)


@dataclass(frozen=True)
class SoundQuality:
    """Faults in all answers together."""

    answers_s: float  # duration of the answers, each from its first sound to its last
    silent_share: float  # share of this duration in frames below SILENT_DBFS
    longest_gap_s: float
    clipped_share: float  # share of samples
    borders: Seam  # borders between ticks
    middles: Seam  # middles of ticks, as a control


def loud_frames(audio: np.ndarray) -> np.ndarray:
    """Return whether each whole frame of int16 samples is above silence: [frames] bool."""
    return _is_loud(audio[: len(audio) // FRAME * FRAME].reshape(-1, FRAME))


def answers_in(audio: np.ndarray) -> list[tuple[float, float]]:
    """Return begin and end in seconds of each answer, which contains gaps up to MAX_GAP_S."""
    spans: list[tuple[float, float]] = []
    for frame in np.flatnonzero(loud_frames(audio)).tolist():
        begin_s, end_s = frame * FRAME / OUTPUT_HZ, (frame + 1) * FRAME / OUTPUT_HZ
        if spans and begin_s - spans[-1][1] <= MAX_GAP_S:
            spans[-1] = (spans[-1][0], end_s)
        else:
            spans.append((begin_s, end_s))
    return spans


def sound_quality(conversations: Sequence[Sequence[np.ndarray]]) -> SoundQuality:
    """Measure conversations, each a sequence of ticks of int16 samples at 24 kHz."""
    answered_s = longest_s = 0.0
    silent = clipped = samples = 0
    borders: list[float] = []
    middles: list[float] = []
    for ticks in conversations:
        audio = np.concatenate(ticks) if ticks else np.zeros(0, np.int16)
        loud = loud_frames(audio)
        for begin_s, end_s in answers_in(audio):
            answered_s += end_s - begin_s
            inside = loud[round(begin_s * OUTPUT_HZ / FRAME) : round(end_s * OUTPUT_HZ / FRAME)]
            silent += int((~inside).sum())
            gaps = np.diff(np.flatnonzero(np.concatenate([[True], inside, [True]]))) - 1
            longest_s = max(longest_s, float(gaps.max(initial=0)) * FRAME / OUTPUT_HZ)
        clipped += int((np.abs(audio.astype(np.int32)) >= CLIPPED).sum())
        samples += len(audio)
        ends = np.cumsum([len(tick) for tick in ticks])
        borders += _ratios(audio, ends[:-1])
        middles += _ratios(audio, [end - len(tick) // 2 for end, tick in zip(ends, ticks, strict=True)])
    frames = answered_s * OUTPUT_HZ / FRAME
    return SoundQuality(
        answered_s,
        silent / frames if frames else 0.0,
        longest_s,
        clipped / samples if samples else 0.0,
        Seam.of(borders),
        Seam.of(middles),
    )


def _ratios(audio: np.ndarray, positions: Sequence[int] | np.ndarray) -> list[float]:
    """Return the derivative's energy at each position divided by its energy around, if both sides are loud."""
    ratios = []
    for position in positions:
        around = audio[max(0, position - MARGIN) : position + MARGIN]
        if len(around) < 2 * MARGIN or not _is_loud(around.reshape(2, MARGIN)).all():
            continue
        energies = np.diff(around.astype(np.float64)) ** 2
        if (mean := np.delete(energies, MARGIN - 1).mean()) > 0:
            ratios.append(float(energies[MARGIN - 1] / mean))
    return ratios


def _is_loud(frames: np.ndarray) -> np.ndarray:
    """Compare the power of int16 [frames, samples] with SILENT_DBFS: [frames] bool."""
    power = (frames.astype(np.float64) ** 2).mean(axis=1) / 32768**2
    return np.asarray(power > 10 ** (SILENT_DBFS / 10))
