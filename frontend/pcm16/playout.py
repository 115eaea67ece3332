"""A model of the client's loudspeaker, and how its lag is reduced."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from config.settings import OUTPUT_HZ
from frontend.audio.pcm import SAMPLE_BYTES

BYTES_PER_SECOND = OUTPUT_HZ * SAMPLE_BYTES
CAUGHT_UP_S = 0.1


@dataclass(frozen=True)
class Lag:
    """A lag of the loudspeaker that begins to be reduced, or is gone."""

    lag_ms: int
    is_catching_up: bool


class Playout:
    """Models a loudspeaker that plays at once, from the audio sent and the times of sending.

    The loudspeaker lags if it ran out of audio (the network stalled) and then received the missing audio as well: all
    later audio is heard later. Above `max_lag_s`, ticks of silence are left out until the lag is gone. The silence that
    has closed a tick early is left out in the same way.
    """

    def __init__(self, max_lag_s: float, now: Callable[[], float] = time.monotonic):
        """Begin without a lag; a `max_lag_s` of 0 permits any lag."""
        self._max_lag_s, self._now = max_lag_s, now
        self._plays_until_s: float | None = None
        self._starved_s = 0.0  # time without audio that has not been made up for
        self._early_bytes = 0  # silence that closed ticks early, and is to be left out
        self._is_catching_up = False

    @property
    def lag_s(self) -> float:
        """Delay, in seconds, that earlier starvation has caused."""
        if self._plays_until_s is None:
            return 0.0
        return max(0.0, min(self._plays_until_s - self._now(), self._starved_s))

    def owe(self, size: int) -> None:
        """Note that a tick was closed early: `size` bytes of audio come before their time."""
        self._early_bytes += size

    def put(self, pcm: bytes) -> tuple[bytes, Lag | None]:
        """Return a tick's audio as it is to be sent, and a lag that begins to be reduced or is gone."""
        now_s = self._now()
        if self._plays_until_s is None:
            self._plays_until_s = now_s
        if now_s > self._plays_until_s:
            self._starved_s += now_s - self._plays_until_s
            self._plays_until_s = now_s
        change = self._watch()
        is_silent = not any(pcm)
        if self._early_bytes and is_silent:
            left_out = min(self._early_bytes, len(pcm))
            self._early_bytes -= left_out
            pcm = pcm[left_out:]
        if self._is_catching_up and is_silent:
            left_out = min(int(self.lag_s * OUTPUT_HZ) * SAMPLE_BYTES, len(pcm))
            self._starved_s -= left_out / BYTES_PER_SECOND
            pcm = pcm[left_out:]
        self._plays_until_s += len(pcm) / BYTES_PER_SECOND
        return pcm, change

    def _watch(self) -> Lag | None:
        if 0 < self._max_lag_s < self.lag_s and not self._is_catching_up:
            self._is_catching_up = True
        elif self._is_catching_up and self.lag_s < CAUGHT_UP_S:
            self._is_catching_up = False
        else:
            return None
        return Lag(round(self.lag_s * 1000), self._is_catching_up)
