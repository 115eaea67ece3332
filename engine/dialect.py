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
    """A conversation that ticks, and its input."""

    conversation: Any  # the dialect's own kind
    input: TickInput


class Dialect(Protocol[C_co]):
    """The four stages of a tick over one thinker and one talker.

    Host state lies in the conversations, device state in the engine's slots; between ticks a dialect keeps neither.
    `P` of the comments below is the dialect's own plan of a tick.
    """

    warm_up_controls: Sequence[Controls]  # ticks after which everything that a conversation needs has run once

    def begin(self, slot: int, options: Options) -> C_co:
        """A conversation in a slot that was reset. Raises `OptionError`."""

    def schedule(self, rows: Sequence[Row]) -> Any:
        """Advances every conversation's state machine by a tick and plans (P) what is computed in it.

        `rows` are sorted by slot. What does not fit the tick's prefill budget stays queued in its conversation.
        """

    def prefill(self, plan: Any) -> None:
        """Audio, text and prompts into the caches, in batches."""

    def decode(self, plan: Any) -> None:
        """Text tokens and codec frames of all that speak, in batches."""

    def postprocess(self, plan: Any) -> dict[int, TickResult]:
        """Results by slot; one that failed by itself gets its error. Waits for the device."""

    def capture(self, enabled: bool) -> None:
        """On CUDA: runs every step at every batch size, and captures it as a graph if `enabled`."""
