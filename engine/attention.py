"""Attention over slots: each row of a batch attends to the keys and values of its slot in place."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

# Step of the attended length, in positions. At its multiples torch's CPU kernel sums a row in the same order, whatever
# the lengths of the other rows.
CPU_POSITIONS_STEP = 512


def cache_positions(positions: int, device: torch.device) -> int:
    """Return the number of positions to allocate for a cache that has to hold `positions`."""
    return positions if device.type != "cpu" else -(-positions // CPU_POSITIONS_STEP) * CPU_POSITIONS_STEP


@dataclass
class CachePositions:
    """Slot and next position of each row of a batch in a decoder's cache.

    The computation reads `slots` and `starts`; both tensors keep their address, as a captured graph requires. The
    integers repeat them for the CPU, which slices the caches by them. Rows from `count` on are padding.
    """

    slots: Tensor  # [R] int64
    starts: Tensor  # [R] int64, position of each row's next token
    count: int = 0
    first_slot: int = 0  # lowest slot of the rows
    end_slot: int = 1  # highest slot of the rows, plus one
    max_start: int = 0
    fills: int = 0  # number of calls of `set_host`

    @classmethod
    def of(cls, slots: list[int], starts: list[int], device: torch.device) -> CachePositions:
        """Return the positions of rows sorted by slot, without padding."""
        positions = cls(torch.tensor(slots, device=device), torch.tensor(starts, device=device))
        positions.set_host(slots, starts)
        return positions

    def set_host(self, slots: list[int], starts: list[int]) -> None:
        """Set the host's integers for the rows that are not padding. Without rows only `fills` changes."""
        if slots:
            self.count, self.max_start = len(slots), max(starts)
            self.first_slot, self.end_slot = min(slots), max(slots) + 1
        self.fills += 1

    def advance(self, positions: int) -> None:
        """Move every row forward by `positions`."""
        self.starts += positions
        self.max_start += positions


class CpuAttention:
    """torch's attention over the range of slots that a batch uses, without copying keys or values."""

    def __init__(
        self, rows: CachePositions, length: int, capacity: int, groups: int, dtype: torch.dtype = torch.float32
    ):
        """Prepare for `length` new positions in each row, `groups` query heads per key head, `capacity` positions."""
        self._rows, self._fills, self._start = rows, rows.fills, rows.max_start
        self._groups, self._length = groups, length
        self._count, self._first_slot, self._end_slot = rows.count, rows.first_slot, rows.end_slot
        self._end = min(capacity, -(-(rows.max_start + length) // CPU_POSITIONS_STEP) * CPU_POSITIONS_STEP)
        self._offsets = rows.slots[: self._count] - self._first_slot
        self._is_contiguous = self._count == self._end_slot - self._first_slot  # rows are sorted by slot
        positions = torch.zeros(self._end_slot - self._first_slot, length, dtype=torch.int64)
        positions[self._offsets] = rows.starts[: self._count, None] + torch.arange(length)
        hidden = torch.arange(self._end) > positions[:, None, :, None]  # [slots, 1, T, end]
        self._mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, -torch.inf)

    def advance_to(self, rows: CachePositions) -> bool:
        """Advance the mask by one position and return True, if `rows` have advanced by one position.

        Return False, and change nothing, for any other rows: they need a new `CpuAttention`.
        """
        is_next = self._rows is rows and self._fills == rows.fills and self._start + 1 == rows.max_start
        if not is_next or rows.max_start >= self._end:
            return False
        self._start = rows.max_start
        self._mask[self._offsets, 0, 0, rows.starts[: self._count]] = 0.0
        return True

    def __call__(self, queries: Tensor, cache: Tensor, scale: float) -> Tensor:
        """Attend from queries [R, T, heads, D] to a layer's cache [slots, 2 * key heads, positions, D].

        Return [R, T, heads * D].
        """
        rows, length, heads, size = queries.shape
        key_heads = heads // self._groups
        attending = queries[: self._count]
        # Single position: present the query heads of a key head as positions, because the fast kernels need as many
        # query heads as key heads.
        is_single = length == 1
        attending = attending[:, 0].unflatten(1, (key_heads, self._groups)) if is_single else attending.transpose(1, 2)
        if not self._is_contiguous:
            by_slot = attending.new_zeros(self._end_slot - self._first_slot, *attending.shape[1:])
            by_slot[self._offsets] = attending
            attending = by_slot
        used = cache[self._first_slot : self._end_slot, :, : self._end]
        attended = F.scaled_dot_product_attention(
            attending,
            used[:, :key_heads],
            used[:, key_heads:],
            attn_mask=self._mask,
            scale=scale,
            enable_gqa=not is_single,
        )
        if not self._is_contiguous:
            attended = attended[self._offsets]
        if not is_single:
            attended = attended.transpose(1, 2)
        attended = attended.reshape(self._count, length, heads * size)
        return attended if rows == self._count else F.pad(attended, (0, 0, 0, 0, 0, rows - self._count))
