"""A stretch of log-mel frames that the audio encoder reads at once. Free of torch."""

from __future__ import annotations

from typing import NamedTuple

MIN_FRAMES = 100
"""Minimum frames of a whole turn: the encoder gives a shorter clip different results in different batches."""


class Clip(NamedTuple):
    """Frames `first` to before `end` of a turn that begins at frame `turn_first`, on the input clock."""

    turn_first: int
    first: int
    end: int
    turn_end: int | None = None  # None while the turn is open

    @property
    def ends_turn(self) -> bool:
        """True if the clip is the last of its turn."""
        return self.end == self.turn_end

    @property
    def frames(self) -> int:
        """Number of log-mel frames; silence is put before a whole turn that is shorter than a second."""
        is_whole = self.ends_turn and self.first == self.turn_first
        return max(self.end - self.first, MIN_FRAMES if is_whole else 0)
