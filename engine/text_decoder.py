"""Decoding of text tokens, shared by both dialects: the batch and the sampling of the next token."""

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
    """A conversation that emits text tokens in a tick."""

    slot: int
    start: int  # position of the next token in the thinker's cache
    rng_offset: int  # number of random numbers that the conversation has used
    candidates: int  # GREEDY, FEW or ALL
    tokens_left: int = 0  # remaining text tokens of the answer; 0: no limit


class TextBatch:
    """R rows that emit text. The tensors keep their addresses, as a captured graph requires."""

    def __init__(self, rows: int, tokens: int, slots: SlotState, thinker: Thinker):
        """Allocate a batch for `tokens` text tokens per tick."""
        device = thinker.decoder.device
        self._padding_slot = slots.padding_slot
        self.slots = torch.full((rows,), slots.padding_slot, device=device)
        self.rng_offset = torch.zeros_like(self.slots)
        self.tokens_left = torch.zeros_like(self.slots)
        self.positions = CachePositions(self.slots, torch.zeros_like(self.slots))  # in the thinker's cache
        self.token = torch.zeros_like(self.slots)  # [R], token of the current step
        self.tick = torch.zeros(rows, tokens, dtype=torch.int64, device=device)  # tokens of the tick
        self.candidates = GREEDY  # maximum over the rows

    @property
    def variant(self) -> Hashable:
        """Number of rows, and number of candidates among which they sample."""
        return len(self.slots), self.candidates

    def fill(self, rows: Sequence[TextRow]) -> None:
        """Set the rows, sorted by slot; the remaining ones become padding."""
        values = [(row.slot, row.start, row.rng_offset, row.tokens_left) for row in rows]
        tensors = (self.slots, self.positions.starts, self.rng_offset, self.tokens_left)
        set_rows(values, self._padding_slot, tensors)
        self.positions.set_host([row.slot for row in rows], [row.start for row in rows])
        self.candidates = max(row.candidates for row in rows)

    def set_padding(self) -> None:
        """Turn every row into padding."""
        self.slots.fill_(self._padding_slot)
        self.positions.starts.zero_()


def next_token(batch: TextBatch, thinker: Thinker, slots: SlotState) -> Tensor:
    """Return the next token of each row [R], sampled from the logits of the slot's last hidden state."""
    logits = slots.row_minimums.apply(thinker.logits, slots.thinker_hidden[batch.slots])
    if batch.candidates == GREEDY:
        return logits.argmax(dim=-1)
    (uniforms,) = slots.sampling.uniforms(batch.slots, batch.rng_offset, 1).unbind(1)
    batch.rng_offset += 1
    return sample(logits, slots.sampling.text(batch.slots), uniforms, batch.candidates)
