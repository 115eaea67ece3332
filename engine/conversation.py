"""What a conversation is between its ticks."""

from __future__ import annotations

from dataclasses import dataclass

from engine.options import Options
from engine.text import TextStream


@dataclass(slots=True)
class Conversation:
    """What the host knows of a conversation; all else lies in slot `slot` of the engine's tensors."""

    slot: int
    options: Options
    text: TextStream
    last_tick_s: float
    opening: int = 0  # positions of the thinker's opening
    ticks: int = 0  # ticks that its caches hold
    age: int = 0  # ticks since it began
