"""Data between the state machine of a conversation and the device side. Free of torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from config.settings import TurnSettings
from engine.cache_layout import TALKER_PREFIX, Evictions
from engine.clip import Clip
from engine.detokenizer import Detokenizer
from engine.turn.chat_template import ChatTemplate

if TYPE_CHECKING:  # `history` imports this module
    from engine.turn.history import Answer, Entry, UserAudio

FRAME_MS = 10  # duration of a log-mel frame


@dataclass(frozen=True)
class TurnConfig:
    """Constants that follow from checkpoint and settings, equal for all conversations."""

    chat: ChatTemplate
    decode: Callable[[list[int]], str]  # tokens -> text, without special tokens
    detokenizer: Callable[[], Detokenizer]
    audio_tokens: Callable[[int], int]  # log-mel frames of a clip -> number of audio tokens
    window_frames: int  # log-mel frames of a window of the audio encoder: windows are independent
    thinker_positions: int  # positions of a conversation's context, the prompt included
    talker_positions: int
    frames_per_tick: int  # codec frames of a tick
    codebooks: int
    codebook_size: int
    heard_tokens_per_s: float
    stops_when_full: bool  # True if engine.context_full is `stop`
    expect_possible: Callable[[TurnSettings], None]  # raises `OptionError` for options that the model cannot serve

    @property
    def longest_turn(self) -> int:
        """Maximum tokens of a turn that is the only one in the context."""
        return self.talker_positions - TALKER_PREFIX - self.frames_per_tick


@dataclass
class PrefillChunk:
    """Tokens of one turn that are prefilled at once, and the clip that belongs to the audio tokens among them."""

    turn: int
    entry: Entry | None  # owner of `content`; None if only an answer begins
    content: list[int]
    answer: Answer | None = None  # the answer that begins after this chunk ...
    opening: list[int] = field(default_factory=list)  # ... and the tokens that open it
    clip: Clip | None = None  # at most a window of the audio encoder
    closing: list[int] = field(default_factory=list)  # end of the answer before, set when the chunk is prefilled

    @property
    def tokens(self) -> list[int]:
        """All tokens, in order, for the thinker."""
        return [*self.closing, *self.content, *self.opening]

    @property
    def talker_first(self) -> int:
        """Index of the first token that the talker receives as well: only user's entries and openings reach it."""
        is_shared = self.entry is None or self.entry.reaches_talker
        return len(self.closing) + (0 if is_shared else len(self.content))


class Prefill(NamedTuple):
    """A chunk and the positions where it is written, after the evictions."""

    chunk: PrefillChunk
    thinker_start: int
    talker_start: int
    evictions: tuple[Evictions, ...] = ()


class Decode(NamedTuple):
    """A tick of an answer, after the evictions."""

    emits_text: bool
    emits_frames: bool
    is_first: bool  # the first codec frames of the answer
    thinker_start: int
    talker_start: int
    text_rng_offset: int
    codec_rng_offset: int
    tokens_left: int  # maximum text tokens that the answer may still have
    evictions: tuple[Evictions, ...] = ()


class Decoded(NamedTuple):
    """The part of a tick's tokens and frames that belongs to the answer."""

    tokens: list[int]
    text: str
    frames: int


class Question(NamedTuple):
    """A question about the speaker of a user's turn, `emotion` or `language`."""

    entry: UserAudio
    name: str
