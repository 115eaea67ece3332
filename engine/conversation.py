"""What a conversation is between its ticks."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from engine.options import Options
from engine.sampler import Sampler
from engine.text import TextStream


@dataclass(slots=True)
class Conversation:
    """All state of one conversation but its keys and values, which lie in slot `slot` of the engine's caches."""

    slot: int
    options: Options
    sampler: Sampler
    text: TextStream
    heard_frame: Tensor  # [H'] what the talker hears next: the summed embeddings of the last codec frame
    last_tick_s: float
    thinker_positions: int = 0
    talker_positions: int = 0
