"""A conversation's log-mel frames and samples that may still belong to a turn, and clips of them as the official
feature extractor gives them for the turn's samples alone.

The stream's log-mel differs from the extractor's in three ways, which are made good here: it has no floor (the
extractor's lies 80 dB below the loudest cell of the clip), it is one frame behind, and at a turn's two ends it has the
sound around the turn where the extractor mirrors the turn's own.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from engine.clip import Clip
from engine.log_mel import FLOOR_BELOW_PEAK, HOP, LogMel, normalise

DELAY_FRAMES = 1  # of the stream (see export/mel_frontend.py)
FIRST_FRAMES, LAST_FRAMES = 2, 1  # of a clip, that see past its ends
EDGE_SAMPLES = 4 * HOP  # enough for any of them


class _Tick(NamedTuple):
    log_mel: Tensor  # [128, T]
    peaks: np.ndarray  # [T], the loudest cell of each frame
    pcm: np.ndarray  # [160 T]


class _Encoded(NamedTuple):
    first: int
    floor: float
    lowest: float  # the least cell, before the floor


class MelBuffer:
    """Frames are counted from the beginning of the conversation, 10 ms each; the oldest are dropped."""

    def __init__(self, log_mel: LogMel):
        self._log_mel = log_mel
        self._ticks: deque[_Tick] = deque()
        self._first = 0  # the oldest frame that is kept
        self._end = 0
        self._turn_first = -1  # the turn that the following are about
        self._start_edge = torch.zeros(128, 0)  # its first two frames
        self._end_edge = torch.zeros(128, 0)  # its last one, once it has ended
        self._encoded: list[_Encoded] = []  # its windows that were read

    def append(self, log_mel: Tensor, pcm: np.ndarray) -> None:
        """A tick: the stream's log-mel [128, T] and the samples [160 T] that came with it."""
        self._ticks.append(_Tick(log_mel, log_mel.amax(dim=0).numpy(), pcm))
        self._end += log_mel.shape[1]

    @property
    def frames(self) -> range:
        """The frames that are kept."""
        return range(self._first, self._end)

    def drop_before(self, frame: int) -> None:
        """Drops the ticks that end before a frame."""
        while self._ticks and self._first + len(self._ticks[0].peaks) <= frame:
            self._first += len(self._ticks.popleft().peaks)

    def clip(self, clip: Clip) -> Tensor:
        """What the extractor gives for the turn's samples, [128, frames] of it, with its floor.

        Of a turn that goes on, the floor follows the loudest cell so far: `first_stale` says what must be read again.
        """
        self._follow(clip.turn_first)
        if clip.frames > clip.end - clip.first:
            silence = np.zeros((clip.frames - clip.end + clip.first) * HOP, np.int16)
            log_mel = self._log_mel(np.concatenate([silence, self._samples(clip.first, clip.end)]))
            return normalise(log_mel, float(log_mel.max()))
        frames = self._frames(clip)
        peak = self._peak(clip.turn_first, clip.turn_end)
        self._encoded = [window for window in self._encoded if window.first < clip.first]
        self._encoded.append(_Encoded(clip.first, peak - FLOOR_BELOW_PEAK, float(frames.min())))
        return normalise(frames, peak)

    def first_stale(self, last: Clip) -> int | None:
        """The first frame of the turn's earliest window that would be another with the turn's own floor, given the
        turn's last clip; None where all stand. A later moment was louder, and cells of the window lie below its floor.
        """
        self._follow(last.turn_first)
        earlier = [window for window in self._encoded if window.first < last.first]
        if not earlier:
            return None
        floor = self._peak(last.turn_first, last.turn_end) - FLOOR_BELOW_PEAK
        changed = (w.first for w in earlier if w.floor != floor and w.lowest < max(w.floor, floor))
        return next(changed, None)

    def _follow(self, turn_first: int) -> None:
        if turn_first != self._turn_first:
            self._turn_first, self._encoded = turn_first, []
            self._start_edge = self._end_edge = torch.zeros(128, 0)

    def _frames(self, clip: Clip) -> Tensor:
        """The clip's cells before the floor, [128, frames]."""
        parts = []
        first, end = clip.first, clip.end
        if clip.first == clip.turn_first:
            parts.append(self._edge_at_start(clip.turn_first))
            first += FIRST_FRAMES
        if clip.ends_turn:
            end -= LAST_FRAMES
        if end > first:
            parts.append(self._stream(first, end))
        if clip.ends_turn:
            parts.append(self._edge_at_end(clip.end))
        return torch.cat(parts, dim=1)

    def _peak(self, turn_first: int, turn_end: int | None) -> float:
        """The loudest cell of a turn, so far if it has not ended."""
        loudest = float(self._edge_at_start(turn_first).max())
        if turn_end is not None:
            loudest = max(loudest, float(self._edge_at_end(turn_end).max()))
        first = turn_first + FIRST_FRAMES + DELAY_FRAMES
        end = self._end if turn_end is None else turn_end - LAST_FRAMES + DELAY_FRAMES
        place = self._first
        for tick in self._ticks:
            inside = tick.peaks[max(first - place, 0) : max(end - place, 0)]
            loudest = max(loudest, float(inside.max(initial=loudest)))
            place += len(tick.peaks)
        return loudest

    def _edge_at_start(self, turn_first: int) -> Tensor:
        """The turn's first two frames, whose windows the extractor fills by mirroring."""
        if not self._start_edge.shape[1]:
            samples = self._samples(turn_first, turn_first + EDGE_SAMPLES // HOP)
            self._start_edge = self._log_mel(samples)[:, :FIRST_FRAMES]
        return self._start_edge

    def _edge_at_end(self, turn_end: int) -> Tensor:
        """The turn's last frame, likewise."""
        if not self._end_edge.shape[1]:
            samples = self._samples(turn_end - EDGE_SAMPLES // HOP, turn_end)
            self._end_edge = self._log_mel(samples)[:, -LAST_FRAMES:]
        return self._end_edge

    def _stream(self, first: int, end: int) -> Tensor:
        """The stream's cells for the sound of frames `first` to before `end`."""
        parts, place = [], self._first
        for tick in self._ticks:
            low, high = first + DELAY_FRAMES - place, end + DELAY_FRAMES - place
            place += len(tick.peaks)
            if high > 0 and low < len(tick.peaks):
                parts.append(tick.log_mel[:, max(low, 0) : high])
        return torch.cat(parts, dim=1)

    def _samples(self, first: int, end: int) -> np.ndarray:
        """PCM16 of frames `first` to before `end`."""
        parts, place = [], self._first
        for tick in self._ticks:
            low, high = (first - place) * HOP, (end - place) * HOP
            place += len(tick.peaks)
            if high > 0 and low < len(tick.pcm):
                parts.append(tick.pcm[max(low, 0) : high])
        return np.concatenate(parts)
