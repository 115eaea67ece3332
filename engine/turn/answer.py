"""An answer while it is due or being given: which of the tokens and codes belong to it, and whether it has ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from config.settings import CODEC_FRAME_MS, TurnSettings
from engine.detokenizer import Detokenizer
from engine.turn.history import Turn


@dataclass
class Answer:
    """Its text is kept in its turn; text and speech end by themselves, each at its own time."""

    turn: Turn
    detokenizer: Detokenizer
    frames: int = 0  # codec frames emitted so far
    is_begun: bool = False  # its turn has been prefilled
    text_ended: bool = False
    speech_ended: bool = False
    input_tokens: int = 0  # positions that it follows
    input_audio_tokens: int = 0  # among them

    @property
    def spoken_ms(self) -> int:
        """How long it has been speaking."""
        return self.frames * CODEC_FRAME_MS

    @property
    def usage(self) -> dict[str, int]:
        """What the answer took: tokens before it, and its own; an audio token of it is a codec frame."""
        return {
            "input_tokens": self.input_tokens,
            "input_audio_tokens": self.input_audio_tokens,
            "output_text_tokens": len(self.turn.tokens),
            "output_audio_tokens": self.frames,
        }

    def take_tokens(self, tokens: Sequence[int], end: int, options: TurnSettings) -> list[int]:
        """Those up to the end of the text: the token `end`, which is among them, or as many as an answer may have."""
        taken: list[int] = []
        for token in tokens:
            taken.append(token)
            if token != end:
                self.turn.tokens.append(token)
            if token == end or len(self.turn.tokens) == options.answer_tokens:
                self.text_ended = True
                break
        if taken and not self.turn.tokens:
            self.speech_ended = True  # an empty answer
        return taken

    def take_frames(self, first_codes: Sequence[int], codebook_size: int, options: TurnSettings) -> int:
        """How many of the frames, told by their first codes, are speech."""
        before = self.frames
        for code in () if self.speech_ended else first_codes:
            if code >= codebook_size or self._has_all_frames(options):
                self.speech_ended = True
                break
            self.frames += 1
        return self.frames - before

    def is_cut_short(self, options: TurnSettings) -> bool:
        """Whether it has ended since it may not be longer."""
        return len(self.turn.tokens) >= options.answer_tokens or self._has_all_frames(options)

    def _has_all_frames(self, options: TurnSettings) -> bool:
        return self.frames + 1 >= options.answer_frames  # transformers decodes no last frame
