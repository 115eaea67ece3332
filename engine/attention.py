"""Attention over slots: each row of a batch reads the keys and values of its own slot, where they lie."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

CPU_POSITIONS_STEP = (
    512  # positions; at multiples of it torch's CPU kernel sums a row alike, however long the others are
)


def cache_positions(positions: int, device: torch.device) -> int:
    """Positions to allocate where `positions` are needed."""
    return positions if device.type != "cpu" else -(-positions // CPU_POSITIONS_STEP) * CPU_POSITIONS_STEP


@dataclass
class CachePositions:
    """How many positions each row of a batch has in a decoder's cache.

    `slots` and `starts` are what the computation reads; they keep their place in memory, as a captured graph needs.
    The integers repeat them for the CPU, which slices the caches by them. Rows from `count` on are padding.
    """

    slots: Tensor  # [R] int64
    starts: Tensor  # [R] int64, the position of a row's next token
    count: int = 0
    first_slot: int = 0  # the rows' slots lie from here ...
    end_slot: int = 1  # ... to before here
    greatest_start: int = 0
    fills: int = 0  # how often the rows have been set

    @classmethod
    def of(cls, slots: list[int], starts: list[int], device: torch.device) -> CachePositions:
        """Positions of rows without padding, sorted by slot."""
        positions = cls(torch.tensor(slots, device=device), torch.tensor(starts, device=device))
        positions.set_host(slots, starts)
        return positions

    def set_host(self, slots: list[int], starts: list[int]) -> None:
        """Sets the host's copy, for the rows that are not padding; a no-op without rows."""
        if slots:
            self.count, self.greatest_start = len(slots), max(starts)
            self.first_slot, self.end_slot = min(slots), max(slots) + 1
        self.fills += 1

    def advance(self, positions: int) -> None:
        """Every row has so many positions more."""
        self.starts += positions
        self.greatest_start += positions


class CpuAttention:
    """torch's attention over the slots from the lowest to the highest of a batch, without copying keys or values."""

    def __init__(
        self, rows: CachePositions, length: int, capacity: int, groups: int, dtype: torch.dtype = torch.float32
    ):
        """For `length` new positions a row, `groups` query heads to a key head, caches of `capacity` positions."""
        self._rows, self._fills, self._start = rows, rows.fills, rows.greatest_start
        self._groups, self._length = groups, length
        self._count, self._low, self._high = rows.count, rows.first_slot, rows.end_slot
        self._end = min(capacity, -(-(rows.greatest_start + length) // CPU_POSITIONS_STEP) * CPU_POSITIONS_STEP)
        self._offsets = rows.slots[: self._count] - self._low
        self._together = self._count == self._high - self._low  # rows are sorted by slot
        positions = torch.zeros(self._high - self._low, length, dtype=torch.int64)
        positions[self._offsets] = rows.starts[: self._count, None] + torch.arange(length)
        hidden = torch.arange(self._end) > positions[:, None, :, None]  # [slots, 1, T, end]
        self._mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, -torch.inf)

    def moved_on(self, rows: CachePositions) -> bool:
        """Whether this serves the rows' next single position too: then their last one is no longer masked out."""
        is_next = self._rows is rows and self._fills == rows.fills and self._start + 1 == rows.greatest_start
        if not is_next or rows.greatest_start >= self._end:
            return False
        self._start = rows.greatest_start
        self._mask[self._offsets, 0, 0, rows.starts[: self._count]] = 0.0
        return True

    def __call__(self, queries: Tensor, cache: Tensor, scale: float) -> Tensor:
        """queries [R, T, heads, D], a layer's cache [slots, 2 * key heads, positions, D] -> [R, T, heads * D]."""
        rows, length, heads, size = queries.shape
        key_heads = heads // self._groups
        asked = queries[: self._count]
        # Of a single position, a key head's queries as positions: the fast kernels want as many of one as of the other.
        one = length == 1
        asked = asked[:, 0].unflatten(1, (key_heads, self._groups)) if one else asked.transpose(1, 2)
        if not self._together:
            spread = asked.new_zeros(self._high - self._low, *asked.shape[1:])
            spread[self._offsets] = asked
            asked = spread
        here = cache[self._low : self._high, :, : self._end]
        attended = F.scaled_dot_product_attention(
            asked, here[:, :key_heads], here[:, key_heads:], attn_mask=self._mask, scale=scale, enable_gqa=length > 1
        )
        if not self._together:
            attended = attended[self._offsets]
        if length > 1:
            attended = attended.transpose(1, 2)
        attended = attended.reshape(self._count, length, heads * size)
        return attended if rows == self._count else F.pad(attended, (0, 0, 0, 0, 0, rows - self._count))
