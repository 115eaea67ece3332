"""What a loudspeaker that plays at once still has to play, and how its lag is brought down again."""

from __future__ import annotations

import time
from collections.abc import Callable

from config.settings import OUTPUT_HZ
from frontend.audio.pcm import SAMPLE_BYTES
from frontend.pcm16.frames import Event

BYTES_A_SECOND = OUTPUT_HZ * SAMPLE_BYTES
CAUGHT_UP_S = 0.1


class Playout:
    """Models the loudspeaker by what was sent to it and when.

    It lags when it had nothing to play for a while (the network stood still) and then got what it had missed as well:
    everything after that is heard later. More than `max_lag_s`, and ticks in which nobody speaks are left out until
    the lag is gone. So is the silence that closed a tick early.
    """

    def __init__(self, max_lag_s: float, now: Callable[[], float] = time.monotonic):
        """`max_lag_s`: 0 is any."""
        self._max_lag_s, self._now = max_lag_s, now
        self._plays_until_s: float | None = None
        self._starved_s = 0.0  # how long it had nothing to play, as far as that is not made up for
        self._owed_bytes = 0  # of silence that closed ticks early
        self._is_catching_up = False

    @property
    def lag_s(self) -> float:
        """How much later than in time a sound that is sent now is heard."""
        if self._plays_until_s is None:
            return 0.0
        return max(0.0, min(self._plays_until_s - self._now(), self._starved_s))

    def owe(self, size: int) -> None:
        """So many bytes of sound come before their time: their tick was closed early."""
        self._owed_bytes += size

    def put(self, pcm: bytes) -> tuple[bytes, Event | None]:
        """A tick's sound as it is to be sent, and the event that tells of a lag that begins or is gone."""
        now = self._now()
        if self._plays_until_s is None:
            self._plays_until_s = now
        if now > self._plays_until_s:
            self._starved_s += now - self._plays_until_s
            self._plays_until_s = now
        event = self._watch()
        is_silent = not any(pcm)
        if self._owed_bytes and is_silent:
            cut = min(self._owed_bytes, len(pcm))
            self._owed_bytes -= cut
            pcm = pcm[cut:]
        if self._is_catching_up and is_silent:
            cut = min(int(self.lag_s * OUTPUT_HZ) * SAMPLE_BYTES, len(pcm))
            self._starved_s -= cut / BYTES_A_SECOND
            pcm = pcm[cut:]
        self._plays_until_s += len(pcm) / BYTES_A_SECOND
        return pcm, event

    def _watch(self) -> Event | None:
        if 0 < self._max_lag_s < self.lag_s and not self._is_catching_up:
            self._is_catching_up = True
        elif self._is_catching_up and self.lag_s < CAUGHT_UP_S:
            self._is_catching_up = False
        else:
            return None
        return {"type": "lag", "lag_ms": round(self.lag_s * 1000), "is_catching_up": self._is_catching_up}
