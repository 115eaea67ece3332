"""The interface of a dialect: how a checkpoint interleaves audio, text and codec tokens. Free of torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

from config.options import Options
from contract.controls import Controls
from engine.tick import TickInput, TickResult


@dataclass
class Conversation:
    """The host state of a conversation, which every dialect extends by its state machine.

    Tensors lie in slot `slot` of the engine's `SlotState`.
    """

    slot: int
    options: Options
    prompt: list[int]  # tokens before the conversation, for the thinker
    prompt_prefilled: int = field(default=0, kw_only=True)  # number of prompt tokens in the thinker's cache

    @property
    def clock_ms(self) -> int:
        """The input clock: milliseconds of audio that the conversation has received."""
        raise NotImplementedError

    @property
    def thinker_length(self) -> int:
        """Positions that the conversation takes in the thinker's cache."""
        raise NotImplementedError

    @property
    def has_prompt_left(self) -> bool:
        """True while a part of the prompt is not in the thinker's cache."""
        return self.prompt_prefilled < len(self.prompt)

    def prompt_chunk_prefilled(self, tokens: int) -> None:
        """Count `tokens` more tokens of the prompt as prefilled."""
        self.prompt_prefilled += tokens


C = TypeVar("C", bound=Conversation)
C_co = TypeVar("C_co", bound=Conversation, covariant=True)


class Row(NamedTuple):
    """A conversation and its input for one tick."""

    conversation: Any  # an instance of the dialect's conversation class
    input: TickInput


class Dialect(Protocol[C_co]):
    """The four stages of a tick over one thinker and one talker.

    The conversations own the host state and the engine's slots the device state; between ticks a dialect holds
    neither. `plan` is the dialect's plan of one tick.
    """

    warm_up_controls: Sequence[Controls]  # controls of the ticks that run every kind of computation once

    def begin(self, slot: int, options: Options) -> C_co:
        """Create a conversation in a slot that was reset. Raises `OptionError`."""

    def schedule(self, rows: Sequence[Row]) -> Any:
        """Advance every conversation's state machine by a tick and return the plan of its computation.

        `rows` are sorted by slot. Prefill beyond the tick's budget stays queued in its conversation.
        """

    def prefill(self, plan: Any) -> None:
        """Append audio, text and prompts to the caches, in batches."""

    def decode(self, plan: Any) -> None:
        """Decode text tokens and codec frames of all conversations that answer, in batches."""

    def postprocess(self, plan: Any) -> dict[int, TickResult]:
        """Return each slot's output, or the error of a conversation that failed. Waits for the device."""

    def capture(self, enabled: bool) -> None:
        """Run every step at every batch size, on CUDA, and capture it as a graph if `enabled`."""
