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
    options: TurnSettings  # as they were when it was asked for
    frames: int = 0  # codec frames emitted so far
    is_begun: bool = False  # its turn has been prefilled
    text_ended: bool = False
    speech_ended: bool = False
    input_tokens: int = 0  # positions that it follows
    input_audio_tokens: int = 0  # among them
    drawn_before: tuple[int, int] = (0, 0)  # random numbers of the conversation: for text tokens, for codec frames

    def __post_init__(self) -> None:
        self.speech_ended = not self.options.speech

    @property
    def spoken_ms(self) -> int:
        """How long it has been speaking."""
        return self.frames * CODEC_FRAME_MS

    @property
    def is_out_of_band(self) -> bool:
        """Whether the history keeps nothing of it."""
        return self.turn.is_out_of_band

    @property
    def kind(self) -> dict[str, bool]:
        """What its events say of it beside."""
        return {"out_of_band": True} if self.is_out_of_band else {}

    @property
    def usage(self) -> dict[str, int]:
        """What the answer took: tokens before it, and its own; an audio token of it is a codec frame."""
        return {
            "input_tokens": self.input_tokens,
            "input_audio_tokens": self.input_audio_tokens,
            "output_text_tokens": len(self.turn.tokens),
            "output_audio_tokens": self.frames,
        }

    @property
    def tokens_left(self) -> int:
        """How many text tokens it may still have."""
        return self.options.answer_tokens - len(self.turn.tokens)

    def take_tokens(self, tokens: Sequence[int], end: int) -> list[int]:
        """Those up to the end of the text: the token `end`, which is among them, or as many as an answer may have."""
        taken: list[int] = []
        for token in tokens:
            taken.append(token)
            if token != end:
                self.turn.tokens.append(token)
            if token == end or not self.tokens_left:
                self.text_ended = True
                break
        if taken and not self.turn.tokens:
            self.speech_ended = True  # an empty answer
        return taken

    def take_frames(self, first_codes: Sequence[int], codebook_size: int) -> int:
        """How many of the frames, told by their first codes, are speech."""
        before = self.frames
        for code in () if self.speech_ended else first_codes:
            if code >= codebook_size or self._has_all_frames:
                self.speech_ended = True
                break
            self.frames += 1
        return self.frames - before

    @property
    def is_cut_short(self) -> bool:
        """Whether it has ended since it may not be longer."""
        return self.tokens_left <= 0 or self._has_all_frames

    @property
    def _has_all_frames(self) -> bool:
        return self.frames + 1 >= self.options.answer_frames  # transformers decodes no last frame
