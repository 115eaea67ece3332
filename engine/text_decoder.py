"""Text tokens: the batch of rows whose text goes on, and the sampling that both dialects share."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from engine.attention import CachePositions
from engine.buckets import set_rows
from engine.sampler import GREEDY, sample
from engine.slots import SlotState
from engine.thinker import Thinker


class TextRow(NamedTuple):
    """A conversation whose text goes on in a tick."""

    slot: int
    start: int  # the thinker's position of its next token
    rng_offset: int
    candidates: int  # GREEDY, FEW or ALL
    tokens_left: int = 0  # of the answer; 0: no limit


class TextBatch:
    """R rows that emit text. The tensors keep their place in memory, so that a captured graph finds them."""

    def __init__(self, rows: int, tokens: int, slots: SlotState, thinker: Thinker):
        """For `tokens` text tokens a tick."""
        device = thinker.decoder.device
        self._padding_slot = slots.padding_slot
        self.slots = torch.full((rows,), slots.padding_slot, device=device)
        self.rng_offset = torch.zeros_like(self.slots)
        self.tokens_left = torch.zeros_like(self.slots)
        self.positions = CachePositions(self.slots, torch.zeros_like(self.slots))  # the thinker's
        self.token = torch.zeros_like(self.slots)  # the step's
        self.tick = torch.zeros(rows, tokens, dtype=torch.int64, device=device)  # the tick's
        self.candidates = GREEDY  # the most of any row

    @property
    def variant(self) -> Hashable:
        """Rows, and how they sample."""
        return len(self.slots), self.candidates

    def fill(self, rows: Sequence[TextRow]) -> None:
        """Sets the rows, sorted by slot; the others are padding."""
        values = [(row.slot, row.start, row.rng_offset, row.tokens_left) for row in rows]
        tensors = (self.slots, self.positions.starts, self.rng_offset, self.tokens_left)
        set_rows(values, self._padding_slot, tensors)
        self.positions.set_host([row.slot for row in rows], [row.start for row in rows])
        self.candidates = max(row.candidates for row in rows)

    def set_padding(self) -> None:
        """Makes every row padding."""
        self.slots.fill_(self._padding_slot)
        self.positions.starts.zero_()


def next_token(batch: TextBatch, thinker: Thinker, slots: SlotState) -> Tensor:
    """A token of each row [R], from its slot's last hidden state."""
    logits = thinker.logits(slots.thinker_hidden[batch.slots])
    if batch.candidates == GREEDY:
        return logits.argmax(dim=-1)
    (uniforms,) = slots.sampling.uniforms(batch.slots, batch.rng_offset, 1).unbind(1)
    batch.rng_offset += 1
    return sample(logits, slots.sampling.text(batch.slots), uniforms, batch.candidates)
