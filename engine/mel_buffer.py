"""Recent log-mel frames and samples of a conversation, and clips of a turn as the official extractor computes them.

The stream's log-mel differs from the extractor's in three ways, which this module corrects. The stream has no floor;
the extractor's is 80 dB below the clip's loudest cell. The stream is one frame late. At the two ends of a turn the
stream contains the sound around the turn, where the extractor mirrors the turn's own samples.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from engine.clip import Clip
from engine.log_mel import FLOOR_BELOW_PEAK, HOP, LogMel, normalise

DELAY_FRAMES = 1  # delay of the stream (see export/mel_frontend.py)
FIRST_FRAMES, LAST_FRAMES = 2, 1  # frames at the two ends of a clip whose windows reach past the clip
EDGE_SAMPLES = 4 * HOP  # samples from which the frames of one end are computed


class _Tick(NamedTuple):
    log_mel: Tensor  # [128, T]
    peaks: np.ndarray  # [T], maximum of each frame
    pcm: np.ndarray  # [160 T]


class _EncodedWindow(NamedTuple):
    first: int
    floor: float
    min_cell: float  # minimum of the window before the floor


class MelBuffer:
    """Buffer of a conversation. Frames of 10 ms are numbered from the start of the conversation."""

    def __init__(self, log_mel: LogMel):
        self._log_mel = log_mel
        self._ticks: deque[_Tick] = deque()
        self._first = 0  # oldest frame in the buffer
        self._end = 0
        self._turn_first = -1  # first frame of the current turn, the turn of the latest clip
        self._start_edge = torch.zeros(128, 0)  # the current turn's first two frames
        self._end_edge = torch.zeros(128, 0)  # the current turn's last frame, after the turn has ended
        self._encoded: list[_EncodedWindow] = []  # windows of the current turn that `clip` has returned

    def append(self, log_mel: Tensor, pcm: np.ndarray) -> None:
        """Append a tick: the stream's log-mel [128, T] and the tick's samples [160 T]."""
        self._ticks.append(_Tick(log_mel, log_mel.amax(dim=0).numpy(), pcm))
        self._end += log_mel.shape[1]

    @property
    def frames(self) -> range:
        """Numbers of the frames in the buffer."""
        return range(self._first, self._end)

    def drop_before(self, frame: int) -> None:
        """Drop the ticks that end before a frame."""
        while self._ticks and self._first + len(self._ticks[0].peaks) <= frame:
            self._first += len(self._ticks.popleft().peaks)

    def clip(self, clip: Clip) -> Tensor:
        """Return the extractor's log-mel of the turn's samples for the clip's frames: [128, frames], with floor.

        While the turn is open, the floor follows the loudest cell until now; `first_stale` finds the windows that the
        final floor changes.
        """
        self._set_turn(clip.turn_first)
        if clip.frames > clip.end - clip.first:
            silence = np.zeros((clip.frames - clip.end + clip.first) * HOP, np.int16)
            log_mel = self._log_mel(np.concatenate([silence, self._samples(clip.first, clip.end)]))
            return normalise(log_mel, float(log_mel.max()))
        frames = self._frames(clip)
        peak = self._peak(clip.turn_first, clip.turn_end)
        self._encoded = [window for window in self._encoded if window.first < clip.first]
        self._encoded.append(_EncodedWindow(clip.first, peak - FLOOR_BELOW_PEAK, float(frames.min())))
        return normalise(frames, peak)

    def first_stale(self, last: Clip) -> int | None:
        """Return the first frame of the earliest window whose floor the turn's final peak changes, or None.

        `last` is the turn's last clip. A window changes if sound after it was louder and some of its cells are below
        one of the two floors.
        """
        self._set_turn(last.turn_first)
        earlier = [window for window in self._encoded if window.first < last.first]
        if not earlier:
            return None
        floor = self._peak(last.turn_first, last.turn_end) - FLOOR_BELOW_PEAK
        changed = (w.first for w in earlier if w.floor != floor and w.min_cell < max(w.floor, floor))
        return next(changed, None)

    def _set_turn(self, turn_first: int) -> None:
        """Forget the edges and windows of any other turn."""
        if turn_first != self._turn_first:
            self._turn_first, self._encoded = turn_first, []
            self._start_edge = self._end_edge = torch.zeros(128, 0)

    def _frames(self, clip: Clip) -> Tensor:
        """Return the clip's cells before the floor, [128, frames]."""
        pieces = []
        first, end = clip.first, clip.end
        if clip.first == clip.turn_first:
            pieces.append(self._edge_at_start(clip.turn_first))
            first += FIRST_FRAMES
        if clip.ends_turn:
            end -= LAST_FRAMES
        if end > first:
            pieces.append(self._stream(first, end))
        if clip.ends_turn:
            pieces.append(self._edge_at_end(clip.end))
        return torch.cat(pieces, dim=1)

    def _peak(self, turn_first: int, turn_end: int | None) -> float:
        """Return the loudest cell of a turn, up to now if `turn_end` is None."""
        loudest = float(self._edge_at_start(turn_first).max())
        if turn_end is not None:
            loudest = max(loudest, float(self._edge_at_end(turn_end).max()))
        first = turn_first + FIRST_FRAMES + DELAY_FRAMES
        end = self._end if turn_end is None else turn_end - LAST_FRAMES + DELAY_FRAMES
        tick_first = self._first
        for tick in self._ticks:
            inside = tick.peaks[max(first - tick_first, 0) : max(end - tick_first, 0)]
            loudest = max(loudest, float(inside.max(initial=loudest)))
            tick_first += len(tick.peaks)
        return loudest

    def _edge_at_start(self, turn_first: int) -> Tensor:
        """Return the turn's first two frames, whose windows the extractor fills by mirroring."""
        if not self._start_edge.shape[1]:
            samples = self._samples(turn_first, turn_first + EDGE_SAMPLES // HOP)
            self._start_edge = self._log_mel(samples)[:, :FIRST_FRAMES]
        return self._start_edge

    def _edge_at_end(self, turn_end: int) -> Tensor:
        """Return the turn's last frame, whose window the extractor fills by mirroring."""
        if not self._end_edge.shape[1]:
            samples = self._samples(turn_end - EDGE_SAMPLES // HOP, turn_end)
            self._end_edge = self._log_mel(samples)[:, -LAST_FRAMES:]
        return self._end_edge

    def _stream(self, first: int, end: int) -> Tensor:
        """Return the stream's cells for the sound of frames `first` to before `end`, without the stream's delay."""
        pieces, tick_first = [], self._first
        for tick in self._ticks:
            low, high = first + DELAY_FRAMES - tick_first, end + DELAY_FRAMES - tick_first
            tick_first += len(tick.peaks)
            if high > 0 and low < len(tick.peaks):
                pieces.append(tick.log_mel[:, max(low, 0) : high])
        return torch.cat(pieces, dim=1)

    def _samples(self, first: int, end: int) -> np.ndarray:
        """Return the PCM16 samples of frames `first` to before `end`."""
        pieces, tick_first = [], self._first
        for tick in self._ticks:
            low, high = (first - tick_first) * HOP, (end - tick_first) * HOP
            tick_first += len(tick.peaks)
            if high > 0 and low < len(tick.pcm):
                pieces.append(tick.pcm[max(low, 0) : high])
        return np.concatenate(pieces)
