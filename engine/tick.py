"""The input and the output of a conversation in one tick."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Union

from contract.controls import Controls
from contract.events import Event
from engine.errors import ConversationError

if TYPE_CHECKING:  # the state machines that import this module run without torch
    import numpy as np
    from torch import Tensor


class TickInput(NamedTuple):
    """One tick of the microphone."""

    log_mel: Tensor  # [128, T] float32 on the CPU: log10 of mel energy, without a floor (see export/mel_frontend.py)
    pcm: np.ndarray  # [samples] int16, 16 kHz: the audio from which the log-mel was computed
    controls: Controls = Controls()
    rejected: str = ""  # message of the `error` event, if the request parameters of the tick are not valid


@dataclass
class TickOutput:
    """One tick of the answer."""

    codes: Tensor  # [16, frames] int64 on the CPU; -1 in a frame of silence
    tokens: list[int]  # text tokens
    text: str  # text that the answer grew by, whole characters only
    events: list[Event] = field(default_factory=list)
    begins: bool = False  # a new answer begins with the first frame: code2wav starts from zero states


TickResult = Union[TickOutput, ConversationError]  # noqa: UP007 (Python 3.10 evaluates it)
