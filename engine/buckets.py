"""Numbers of rows of a batch, for which tensors are allocated and graphs are captured.

A row is one conversation's share of a batch. Further rows are padding, which uses the padding slot.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

B = TypeVar("B")


@dataclass(frozen=True)
class BatchBuckets:
    """Numbers of rows that a batch may have."""

    slots: int
    device: torch.device
    min_rows: int = 1  # used on a CPU, see `RowMinimums`

    def of(self, count: int) -> int:
        """Return the rows of a batch for `count` conversations.

        On CUDA a power of two or the number of slots, on a CPU `count` or `min_rows`.
        """
        if self.device.type == "cpu":
            return max(count, self.min_rows)
        return min(self.slots, 1 << (count - 1).bit_length())

    def all(self) -> list[int]:
        """Return all numbers of rows of a batch on CUDA, ascending."""
        return sorted({self.of(count) for count in range(1, self.slots + 1)})


class BatchPool(Generic[B]):
    """One batch for each number of rows, so that a captured graph finds its tensors at their addresses."""

    def __init__(self, make: Callable[[int], B], buckets: BatchBuckets):
        self._make, self._buckets = make, buckets
        self._batches: dict[int, B] = {}

    def of(self, count: int) -> B:
        """Return the batch for `count` conversations, and for one if `count` is 0."""
        return self.with_rows(self._buckets.of(max(1, count)))

    def with_rows(self, rows: int) -> B:
        """Return the batch with exactly `rows` rows."""
        if rows not in self._batches:
            self._batches[rows] = self._make(rows)
        return self._batches[rows]


def set_rows(values: Sequence[Sequence[int]], padding_slot: int, tensors: Sequence[Tensor]) -> None:
    """Copy columns of integers, the slot first, into tensors [R]; the remaining rows become padding."""
    padding = [(padding_slot, *[0] * (len(tensors) - 1))] * (len(tensors[0]) - len(values))
    columns = torch.tensor([*values, *padding]).T.to(tensors[0].device)
    for tensor, column in zip(tensors, columns, strict=True):
        tensor.copy_(column)
