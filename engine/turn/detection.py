"""Start and end of speech, from probabilities: the semantics of OpenAI's `server_vad`, with Silero's hysteresis."""

from __future__ import annotations

from enum import Enum, auto

from config.settings import INPUT_HZ, TurnSettings
from engine.vad import WINDOW

WINDOW_MS = WINDOW * 1000 // INPUT_HZ
HYSTERESIS = 0.15  # speech continues until the probability is this far below the threshold (Silero's value)


class DetectorState(Enum):
    """Content of the latest windows of the user's audio."""

    SILENCE = auto()
    SPEECH = auto()
    PAUSE = auto()  # silence within speech, shorter than `silence_duration_ms`
    AWAITS_SILENCE = auto()  # this speech was dealt with: the next one begins after the probability has fallen


class Change(Enum):
    """Change by a window of audio."""

    STARTED = auto()
    STOPPED = auto()


class TurnDetector:
    """Detects the speech of one conversation. Times are milliseconds of its input clock."""

    def __init__(self, turn: TurnSettings):
        self._turn = turn
        self._clock_ms = 0
        self._silent_since_ms = 0  # start of the pause
        self.state = DetectorState.SILENCE
        self.voiced_until_ms = 0  # end of the latest window with speech
        self.started_ms = 0  # start of the latest speech
        self.stopped_ms = 0  # time at which the end of the latest speech was detected

    @property
    def is_speech(self) -> bool:
        """True while speech goes on, its pauses included."""
        return self.state in (DetectorState.SPEECH, DetectorState.PAUSE)

    @property
    def spoken_ms(self) -> int:
        """Duration of the latest speech, in milliseconds, without the silence at its end."""
        return self.voiced_until_ms - self.started_ms

    def change(self, turn: TurnSettings) -> None:
        """Use other options from the next window on."""
        self._turn = turn

    def begin_at(self, clock_ms: int) -> None:
        """Reset to silence: the next window begins at `clock_ms`."""
        self._clock_ms = self.voiced_until_ms = clock_ms
        self.state = DetectorState.SILENCE

    def end_speech(self) -> None:
        """End the speech that goes on; the next one begins after the probability has fallen once."""
        self.state = DetectorState.AWAITS_SILENCE if self.is_speech else DetectorState.SILENCE

    def feed(self, probability: float) -> Change | None:
        """Process the next window of 32 ms; return what it changed."""
        begin_ms, self._clock_ms = self._clock_ms, self._clock_ms + WINDOW_MS
        if probability >= self._turn.threshold:
            return self._hear_speech(begin_ms)
        if self.state is DetectorState.AWAITS_SILENCE:
            self.state = DetectorState.SILENCE
        change = None
        if self.is_speech and probability < self._turn.threshold - HYSTERESIS:
            change = self._hear_silence(begin_ms)
        if self.state is DetectorState.SPEECH:
            self.voiced_until_ms = self._clock_ms
        return change

    def _hear_speech(self, begin_ms: int) -> Change | None:
        if self.state is DetectorState.AWAITS_SILENCE:
            return None
        change = None
        if self.state is DetectorState.SILENCE:
            change, self.started_ms = Change.STARTED, begin_ms
        self.state = DetectorState.SPEECH
        self.voiced_until_ms = self._clock_ms
        return change

    def _hear_silence(self, begin_ms: int) -> Change | None:
        if self.state is DetectorState.SPEECH:
            self.state, self._silent_since_ms = DetectorState.PAUSE, begin_ms
        if self._clock_ms - self._silent_since_ms < self._turn.silence_duration_ms:
            return None
        self.state, self.stopped_ms = DetectorState.SILENCE, self._clock_ms
        return Change.STOPPED
