"""An answer while it is queued or in progress: which tokens and codec frames belong to it, and when it has ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

from config.settings import CODEC_FRAME_MS, TurnSettings
from engine.detokenizer import Detokenizer
from engine.turn.answer_kinds import AnswerKind
from engine.turn.history import Answer, UserAudio


class Phase(Enum):
    """Progress of an answer."""

    QUEUED = auto()  # the turn is not prefilled yet
    IN_PROGRESS = auto()


@dataclass
class Generation:
    """The generation of an answer. Text and speech are two tracks that end independently."""

    answer: Answer
    kind: AnswerKind
    options: TurnSettings  # the options at the time of the request
    detokenizer: Detokenizer
    user: UserAudio | None = None  # the speech that is answered
    phase: Phase = Phase.QUEUED
    frames: int = 0  # codec frames emitted
    text_ended: bool = False
    speech_ended: bool = False
    input_tokens: int = 0  # positions before the answer
    input_audio_tokens: int = 0

    def __post_init__(self) -> None:
        self.speech_ended = not self.options.speech

    @property
    def has_ended(self) -> bool:
        """True if the text and the speech have ended."""
        return self.text_ended and self.speech_ended

    @property
    def spoken_ms(self) -> int:
        """Duration of the audio that was emitted, in milliseconds."""
        return self.frames * CODEC_FRAME_MS

    @property
    def span(self) -> dict[str, int]:
        """Times of the speech that is answered, as fields of events."""
        span_ms = self.user.span_ms if self.user else None
        return {"audio_start_ms": span_ms[0], "audio_end_ms": span_ms[1]} if span_ms else {}

    @property
    def usage(self) -> dict[str, int]:
        """Numbers of tokens before the answer and in it; an audio token of an answer is a codec frame."""
        return {
            "input_tokens": self.input_tokens,
            "input_audio_tokens": self.input_audio_tokens,
            "output_text_tokens": len(self.answer.tokens),
            "output_audio_tokens": self.frames,
        }

    @property
    def tokens_left(self) -> int:
        """Maximum text tokens that the answer may still have."""
        return self.options.answer_tokens - len(self.answer.tokens)

    @property
    def has_max_length(self) -> bool:
        """True if the answer ended because it has its maximum length."""
        return self.tokens_left <= 0 or self._has_all_frames

    @property
    def _has_all_frames(self) -> bool:
        return self.frames + 1 >= self.options.answer_frames  # transformers does not decode the last frame

    def take_tokens(self, tokens: Sequence[int], end: int) -> list[int]:
        """Return the tokens up to the end of the text: up to and with `end`, or to the maximum number of tokens."""
        taken: list[int] = []
        for token in tokens:
            taken.append(token)
            if token != end:
                self.answer.tokens.append(token)
            if token == end or not self.tokens_left:
                self.text_ended = True
                break
        if taken and not self.answer.tokens:
            self.speech_ended = True  # an empty answer
        return taken

    def take_frames(self, first_codes: Sequence[int], codebook_size: int) -> int:
        """Return the number of codec frames, given by their first codes, that are speech."""
        before = self.frames
        for code in () if self.speech_ended else first_codes:
            if code >= codebook_size or self._has_all_frames:
                self.speech_ended = True
                break
            self.frames += 1
        return self.frames - before
