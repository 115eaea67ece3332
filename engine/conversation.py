"""What a conversation is between its ticks, and what goes into and comes out of one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from engine.options import Controls, Options
from engine.text import TextStream

Event = dict[str, Any]


@dataclass
class Conversation:
    """What the host knows of a conversation in any dialect; all else lies in slot `slot` of the engine's tensors."""

    slot: int
    options: Options


@dataclass
class ScaConversation(Conversation):
    """One in the dialect `sca`."""

    text: TextStream
    opening: int = 0  # positions of the thinker's opening
    ticks: int = 0  # ticks that its caches hold
    age: int = 0  # ticks since it began


class Heard(NamedTuple):
    """What comes in with a tick of a conversation."""

    log_mel: Tensor  # [128, T], on the CPU
    pcm: np.ndarray | None = None  # [samples] int16, the sound that it was made of
    controls: Controls = Controls()


@dataclass
class Spoken:
    """What a conversation said in a tick."""

    codes: Tensor  # [16, frames] int64, on the CPU; -1 in a frame of silence
    tokens: list[int]  # the text tokens
    text: str  # what the text grew by
    events: list[Event] = field(default_factory=list)
    begins: bool = False  # whether a speech begins with the first frame
