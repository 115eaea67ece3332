"""The section [audio]: length of a tick, and the rates and constants of the audio path."""

from __future__ import annotations

from dataclasses import dataclass

from config.loader import expect

CODEC_FRAME_MS = 80  # duration of a codec frame, and also of an audio token of the thinker
INPUT_HZ = 16_000  # sampling rate of the microphone
OUTPUT_HZ = 24_000  # sampling rate of code2wav
CODE2WAV_DELAY = 555  # samples by which the stream of code2wav lags behind its codes
MEL_HOP = 160  # input samples a log-mel frame


@dataclass(frozen=True)
class AudioSettings:
    """The clock of the system, and the sizes that follow from the length of a tick."""

    tick_ms: int

    def __post_init__(self) -> None:
        expect(self.tick_ms in (80, 160, 320), "audio.tick_ms", self.tick_ms, "80, 160 or 320")

    @property
    def codec_frames(self) -> int:
        """Codec frames, and also audio tokens, of a tick."""
        return self.tick_ms // CODEC_FRAME_MS

    @property
    def input_samples(self) -> int:
        """Samples of a tick at 16 kHz."""
        return self.tick_ms * INPUT_HZ // 1000

    @property
    def output_samples(self) -> int:
        """Samples of a tick at 24 kHz."""
        return self.tick_ms * OUTPUT_HZ // 1000

    @property
    def mel_frames(self) -> int:
        """Log-mel frames of a tick."""
        return self.input_samples // MEL_HOP
