"""What a dialect is to the engine: how a checkpoint interleaves sound, text and codec frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, Union

import torch

from engine.conversation import Conversation, Heard, Spoken
from engine.errors import ConversationError
from engine.options import Controls, Options
from engine.stopwatch import Stopwatch

Said = Union[Spoken, ConversationError]  # noqa: UP007 (Python 3.10 evaluates it)


class Dialect(Protocol):
    """A strategy over one thinker and one talker; all that it knows of a conversation lies in its slot."""

    device: torch.device
    stopwatch: Stopwatch
    rehearsal: Sequence[Controls]  # ticks after which all that a conversation needs has run once

    def begin(self, slot: int, options: Options) -> Conversation:
        """A conversation in a wiped slot. Raises `OptionError`."""

    def end(self, slot: int) -> None:
        """Wipes a slot: nothing of its conversation is left."""

    def ready(self, conversation: Conversation) -> None:
        """Makes room for a tick. Raises `ContextFullError`."""

    def tick(self, conversations: Sequence[Conversation], heard: Sequence[Heard]) -> Sequence[Said]:
        """One tick of each conversation, sorted by slot; one that fails by itself gets its error."""

    def positions(self, conversation: Conversation) -> int:
        """How many positions of the thinker's cache the conversation takes."""

    def rehearse(self, capture: bool) -> None:
        """Runs the steps of a tick for every size of batch on CUDA, and captures them as graphs."""
