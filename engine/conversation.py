"""What goes into a tick of a conversation and what comes out, and what every dialect's conversation has in common."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple, Union

import numpy as np
from torch import Tensor

from config.options import Options
from engine.errors import ConversationError
from engine.options import Controls

Event = dict[str, Any]


class TickInput(NamedTuple):
    """One tick of the microphone."""

    log_mel: Tensor  # [128, T] float32 on the CPU: log10 of mel energy, without a floor (see export/mel_frontend.py)
    pcm: np.ndarray  # [samples] int16, 16 kHz: the sound that the log-mel was computed from
    controls: Controls = Controls()
    rejected: str = ""  # why the tick's request parameters were not taken; told as an event


@dataclass
class TickOutput:
    """One tick of the answer."""

    codes: Tensor  # [16, frames] int64 on the CPU; -1 in a frame of silence
    tokens: list[int]  # text tokens
    text: str  # what the text grew by: whole characters
    events: list[Event] = field(default_factory=list)
    begins: bool = False  # whether a new speech begins with the first frame: code2wav starts from zero states


class Eviction(NamedTuple):
    """Positions that leave one of the caches: `leaving` of a slot's `length`, those after the first `kept`."""

    kept: int
    leaving: int
    length: int


class Evictions(NamedTuple):
    """What leaves both caches of a conversation."""

    thinker: Eviction
    talker: Eviction


TickResult = Union[TickOutput, ConversationError]  # noqa: UP007 (Python 3.10 evaluates it)


@dataclass
class Conversation:
    """A conversation as its dialect's state machine knows it: host state alone.

    Tensors lie in slot `slot` of the engine's `SlotState`.
    """

    slot: int
    options: Options
    prompt: list[int]  # tokens before the conversation, for the thinker
    prompt_prefilled: int = field(default=0, kw_only=True)  # how many of them are in the thinker's cache

    @property
    def clock_ms(self) -> int:
        """The input clock: milliseconds of sound that the conversation has heard."""
        raise NotImplementedError

    @property
    def thinker_length(self) -> int:
        """Positions that the conversation takes in the thinker's cache."""
        raise NotImplementedError

    @property
    def has_prompt_left(self) -> bool:
        """Whether some of the prompt is not in the thinker's cache yet."""
        return self.prompt_prefilled < len(self.prompt)

    def prompt_chunk_prefilled(self, tokens: int) -> None:
        """So many more tokens of the prompt are in the cache."""
        self.prompt_prefilled += tokens
