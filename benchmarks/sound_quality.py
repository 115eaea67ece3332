"""Faults that can be heard in an answer's sound: gaps, clipping, seams where one tick's sound meets the next one's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from config.settings import OUTPUT_HZ

FRAME = OUTPUT_HZ // 50  # samples, 20 ms
SILENT_DBFS = -45.0  # RMS of a frame
JOINED_S = 0.5  # gaps up to this are within an answer; a longer one divides it
CLIPPED = 32767
AROUND = 240  # samples on both sides of a border with which it is compared, 10 ms


@dataclass(frozen=True)
class Seam:
    """Energy of the derivative at some places over that around each: 1 on average where nothing is to be heard."""

    places: int
    ratio: float  # mean
    error: float  # standard error of the mean

    @classmethod
    def of(cls, ratios: Sequence[float]) -> Seam:
        """From each place's."""
        error = float(np.std(ratios, ddof=1) / np.sqrt(len(ratios))) if len(ratios) > 1 else 0.0
        return cls(len(ratios), float(np.mean(ratios)) if ratios else 0.0, error)


@dataclass(frozen=True)
class SoundQuality:
    """Of all answers together."""

    answers_s: float  # from each answer's first sound to its last
    silent_share: float  # of these, in frames below SILENT_DBFS
    longest_gap_s: float
    clipped_share: float  # of samples
    borders: Seam  # where one tick's sound meets the next one's
    middles: Seam  # as a control, in the middle of ticks


def loud_frames(sound: np.ndarray) -> np.ndarray:
    """Whether each whole frame of int16 samples is above silence: [frames] bool."""
    return _is_loud(sound[: len(sound) // FRAME * FRAME].reshape(-1, FRAME))


def answers_in(sound: np.ndarray) -> list[tuple[float, float]]:
    """Begin and end in seconds of what is said, gaps up to JOINED_S within."""
    spans: list[tuple[float, float]] = []
    for frame in np.flatnonzero(loud_frames(sound)).tolist():
        begin_s, end_s = frame * FRAME / OUTPUT_HZ, (frame + 1) * FRAME / OUTPUT_HZ
        if spans and begin_s - spans[-1][1] <= JOINED_S:
            spans[-1] = (spans[-1][0], end_s)
        else:
            spans.append((begin_s, end_s))
    return spans


def sound_quality(ticks: Sequence[Sequence[np.ndarray]]) -> SoundQuality:
    """Of conversations' ticks of int16 samples at 24 kHz."""
    answered_s = longest_s = 0.0
    silent = clipped = samples = 0
    borders: list[float] = []
    middles: list[float] = []
    for conversation in ticks:
        sound = np.concatenate(conversation) if conversation else np.zeros(0, np.int16)
        loud = loud_frames(sound)
        for begin_s, end_s in answers_in(sound):
            answered_s += end_s - begin_s
            inside = loud[round(begin_s * OUTPUT_HZ / FRAME) : round(end_s * OUTPUT_HZ / FRAME)]
            silent += int((~inside).sum())
            gaps = np.diff(np.flatnonzero(np.concatenate([[True], inside, [True]]))) - 1
            longest_s = max(longest_s, float(gaps.max(initial=0)) * FRAME / OUTPUT_HZ)
        clipped += int((np.abs(sound.astype(np.int32)) >= CLIPPED).sum())
        samples += len(sound)
        ends = np.cumsum([len(tick) for tick in conversation])
        borders += _ratios(sound, ends[:-1])
        middles += _ratios(sound, [end - len(tick) // 2 for end, tick in zip(ends, conversation, strict=True)])
    frames = answered_s * OUTPUT_HZ / FRAME
    return SoundQuality(
        answered_s,
        silent / frames if frames else 0.0,
        longest_s,
        clipped / samples if samples else 0.0,
        Seam.of(borders),
        Seam.of(middles),
    )


def _ratios(sound: np.ndarray, places: Sequence[int] | np.ndarray) -> list[float]:
    """Energy of the derivative at each place over that around it, where there is sound on both sides."""
    found = []
    for place in places:
        around = sound[max(0, place - AROUND) : place + AROUND]
        if len(around) < 2 * AROUND or not _is_loud(around.reshape(2, AROUND)).all():
            continue
        steps = np.diff(around.astype(np.float64)) ** 2
        if (beside := np.delete(steps, AROUND - 1).mean()) > 0:
            found.append(float(steps[AROUND - 1] / beside))
    return found


def _is_loud(parts: np.ndarray) -> np.ndarray:
    """int16 [parts, samples] -> [parts] bool."""
    power = (parts.astype(np.float64) ** 2).mean(axis=1) / 32768**2
    return np.asarray(power > 10 ** (SILENT_DBFS / 10))
