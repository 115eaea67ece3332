"""Start and end of speech, from probabilities: the semantics of OpenAI's `server_vad`, with Silero's hysteresis."""

from __future__ import annotations

from collections.abc import Sequence

from config.settings import INPUT_HZ, TurnSettings
from engine.vad import WINDOW

WINDOW_MS = WINDOW * 1000 // INPUT_HZ
HYSTERESIS = 0.15  # speech goes on until the probability is so far below the threshold (Silero's own)


class SpeechDetector:
    """Follows one conversation. Times are milliseconds of its input clock."""

    def __init__(self, turn: TurnSettings):
        self._turn = turn
        self._clock_ms = 0
        self._silent_since: int | None = None
        self.voiced_until_ms = 0  # where the latest speech was last heard
        self._must_fall = False
        self.is_speech = False  # whether speech goes on, its pauses included
        self.started_ms = 0  # when the latest speech began
        self.stopped_ms = 0  # when the latest that ended was found to have ended

    def change(self, turn: TurnSettings) -> None:
        """The options that hold from here on."""
        self._turn = turn

    def begin_at(self, clock_ms: int) -> None:
        """Begin again, in silence: the next window begins here."""
        self._clock_ms = self.voiced_until_ms = clock_ms
        self.is_speech = self._must_fall = False
        self._silent_since = None

    @property
    def awaits_silence(self) -> bool:
        """True while the speech in progress was dealt with: the next one begins after the probability has fallen."""
        return self._must_fall

    @property
    def spoken_ms(self) -> int:
        """How long the latest speech has lasted, without the silence at its end."""
        return self.voiced_until_ms - self.started_ms

    def feed(self, probabilities: Sequence[float]) -> None:
        """The next windows of 32 ms."""
        for probability in probabilities:
            begin, self._clock_ms = self._clock_ms, self._clock_ms + WINDOW_MS
            self._must_fall &= probability >= self._turn.threshold
            if self._must_fall:
                continue
            if probability >= self._turn.threshold:
                self._silent_since = None
                if not self.is_speech:
                    self.is_speech, self.started_ms = True, begin
            elif self.is_speech and probability < self._turn.threshold - HYSTERESIS:
                if self._silent_since is None:
                    self._silent_since = begin
                if self._clock_ms - self._silent_since >= self._turn.silence_duration_ms:
                    self.is_speech, self._silent_since = False, None
                    self.stopped_ms = self._clock_ms
            if self.is_speech and self._silent_since is None:
                self.voiced_until_ms = self._clock_ms

    def end_speech(self) -> None:
        """Ends the speech that goes on; none begins before the probability has fallen once."""
        self._must_fall, self.is_speech, self._silent_since = self.is_speech, False, None
