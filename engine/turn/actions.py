"""What a conversation in the dialect `turn` asks for and is told: data between state machine and device side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from config.settings import TurnSettings
from engine.cache_layout import TALKER_PREFIX, Evictions
from engine.clip import Clip
from engine.detokenizer import Detokenizer
from engine.turn.chat_template import ChatTemplate
from engine.turn.history import Turn


@dataclass(frozen=True)
class TurnConfig:
    """What follows from checkpoint and settings, alike for all conversations."""

    chat: ChatTemplate
    decode: Callable[[list[int]], str]  # tokens -> text, without special tokens
    detokenizer: Callable[[], Detokenizer]
    audio_tokens: Callable[[int], int]  # log-mel frames of a clip -> its audio tokens
    window_frames: int  # of the audio encoder's attention: windows are encoded apart
    thinker_positions: int  # of a conversation's context, its prompt included
    talker_positions: int
    frames_per_tick: int  # codec frames
    codebooks: int
    codebook_size: int
    heard_tokens_per_s: float
    stops_when_full: bool  # engine.context_full is `stop`
    expect_possible: Callable[[TurnSettings], None]  # raises `OptionError` for options that the model cannot serve

    @property
    def longest_turn(self) -> int:
        """Tokens of the longest turn that fits into the context alone."""
        return self.talker_positions - TALKER_PREFIX - self.frames_per_tick


@dataclass
class PrefillChunk:
    """Tokens to be prefilled at once, and the clip that belongs to the audio tokens among them."""

    turn: Turn
    closing: list[int]  # the end of the answer before
    user: list[int]  # of the user's turn: the talker gets them too
    opening: list[int]  # of the answer, in the last chunk of a turn
    clip: Clip | None = None  # a window of the audio encoder at most
    aside: list[int] = field(default_factory=list)  # of a message that is not the user's: the talker does not get it

    @property
    def tokens(self) -> list[int]:
        """All of them, in order."""
        return [*self.closing, *self.aside, *self.user, *self.opening]


class Prefill(NamedTuple):
    """A chunk goes to these positions, after the evictions."""

    chunk: PrefillChunk
    thinker_start: int
    talker_start: int
    evictions: tuple[Evictions, ...] = ()


class Decode(NamedTuple):
    """A tick of an answer, after the evictions."""

    emits_text: bool
    emits_frames: bool
    is_first: bool  # it emits frames, and none of the answer was emitted before
    thinker_start: int
    talker_start: int
    text_rng_offset: int
    codec_rng_offset: int
    tokens_left: int  # text tokens that the answer may still have
    evictions: tuple[Evictions, ...] = ()


class Decoded(NamedTuple):
    """What of a tick's tokens and frames belongs to the answer."""

    tokens: list[int]
    text: str
    frames: int


class Question(NamedTuple):
    """A question about the speaker of a turn, `emotion` or `language`."""

    turn: Turn
    name: str
