"""The log-mel frames of a conversation that may still belong to a turn."""

from __future__ import annotations

import torch
from torch import Tensor

LEAST_FRAMES = 100  # of a turn: the encoder reads a shorter clip differently alone and among others


class Ear:
    """Frames are counted from the beginning of the stream, 10 ms each; the oldest are forgotten."""

    def __init__(self, kept: int):
        """`kept`: how many frames are remembered while no turn is open."""
        self._kept = kept
        self._frames = torch.zeros(128, 0)
        self._first = 0

    @property
    def clock(self) -> int:
        """Frames heard so far."""
        return self._first + self._frames.shape[1]

    @property
    def first(self) -> int:
        """The oldest frame that is remembered."""
        return self._first

    def hear(self, log_mel: Tensor) -> None:
        """[128, T] more."""
        self._frames = torch.cat([self._frames, log_mel], dim=1)

    def clip(self, first: int, end: int) -> Tensor:
        """Frames `first` to before `end`, [128, T]."""
        return self._frames[:, first - self._first : end - self._first]

    def forget(self, before: int | None = None) -> None:
        """Lets go of what no turn can need any more: all before a frame, or all but the latest."""
        first = self.clock - self._kept if before is None else before
        if first > self._first:
            self._frames = self._frames[:, first - self._first :].clone()
            self._first = first


def lengthen(clip: Tensor) -> Tensor:
    """A clip of at least a second: silence before a shorter one, at the clip's own floor."""
    missing = LEAST_FRAMES - clip.shape[1]
    if missing <= 0:
        return clip
    return torch.cat([clip.min().expand(128, missing), clip], dim=1)
