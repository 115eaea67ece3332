"""Attention over slots: each row of a batch reads the keys and values of its own slot, where they lie."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

CPU_GRANULE = 512  # positions; at multiples of it torch's CPU kernel sums a row alike, however long the others are


def cache_positions(positions: int, device: torch.device) -> int:
    """Positions to allocate where `positions` are needed."""
    return positions if device.type != "cpu" else -(-positions // CPU_GRANULE) * CPU_GRANULE


@dataclass
class Cursor:
    """Where the rows of a batch stand in a decoder's caches.

    `slots` and `starts` are what the computation reads; they keep their place in memory, as a captured graph needs.
    The plain numbers repeat them for the CPU, which slices the caches by them. Rows from `count` on are padding.
    """

    slots: Tensor  # [R] int64
    starts: Tensor  # [R] int64, the position that a row's next input has
    count: int = 0
    low: int = 0  # the rows' slots lie from `low` ...
    high: int = 1  # ... to before `high`
    end: int = 0  # the greatest start

    def place(self, slots: list[int], starts: list[int]) -> None:
        """Tells the plain numbers of the rows that are no padding."""
        self.count, self.low, self.high, self.end = len(slots), min(slots), max(slots) + 1, max(starts)

    def advance(self, positions: int) -> None:
        """Every row has fed so many positions."""
        self.starts += positions
        self.end += positions


class CpuAttention:
    """torch's attention over the slots from the lowest to the highest of a batch, without copying keys or values."""

    def __init__(self, cursor: Cursor, length: int, capacity: int, groups: int, dtype: torch.dtype = torch.float32):
        """For `length` new positions a row, `groups` query heads to a key head, caches of `capacity` positions."""
        self._groups, self._length = groups, length
        self._count, self._low, self._high = cursor.count, cursor.low, cursor.high
        self._end = min(capacity, -(-(cursor.end + length) // CPU_GRANULE) * CPU_GRANULE)
        self._offsets = cursor.slots[: self._count] - self._low
        self._together = self._count == self._high - self._low  # rows are sorted by slot
        positions = torch.zeros(self._high - self._low, length, dtype=torch.int64)
        positions[self._offsets] = cursor.starts[: self._count, None] + torch.arange(length)
        hidden = torch.arange(self._end) > positions[:, None, :, None]  # [slots, 1, T, end]
        if length > 1:
            hidden = hidden.repeat(1, 1, groups, 1)
        self._mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, -torch.inf)

    def __call__(self, queries: Tensor, cache: Tensor, scale: float) -> Tensor:
        """queries [R, T, heads, D], a layer's cache [slots, 2 * key heads, positions, D] -> [R, T, heads * D]."""
        rows, length, heads, size = queries.shape
        key_heads = heads // self._groups
        folded = queries[: self._count].unflatten(2, (key_heads, self._groups)).permute(0, 2, 3, 1, 4).flatten(2, 3)
        if not self._together:
            spread = folded.new_zeros(self._high - self._low, *folded.shape[1:])
            spread[self._offsets] = folded
            folded = spread
        here = cache[self._low : self._high, :, : self._end]
        heard = F.scaled_dot_product_attention(
            folded, here[:, :key_heads], here[:, key_heads:], attn_mask=self._mask, scale=scale
        )  # [slots, key heads, groups * T, D]
        if not self._together:
            heard = heard[self._offsets]
        heard = heard.unflatten(2, (self._groups, length)).permute(0, 3, 1, 2, 4)
        heard = heard.reshape(self._count, length, heads * size)
        return heard if rows == self._count else F.pad(heard, (0, 0, 0, 0, 0, rows - self._count))
