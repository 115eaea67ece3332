"""Batches: numbers of rows for which tensors are kept and graphs are captured, and their filling.

A row is a conversation's share of a batch. Rows past the conversations are padding: they use the padding slot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

MIN_ROWS = (4, 8, 16, 32)  # that are tried on a CPU
MAX_ROWS = 64  # with which they are compared

B = TypeVar("B")


@dataclass(frozen=True)
class BatchBuckets:
    """Numbers of rows that a batch may have."""

    slots: int
    device: torch.device
    least: int = 1  # on a CPU, see `min_rows`

    def of(self, count: int) -> int:
        """Rows of a batch of `count` conversations: on CUDA a power of two, or all slots; on a CPU hardly more."""
        if self.device.type == "cpu":
            return max(count, self.least)
        return min(self.slots, 1 << (count - 1).bit_length())

    def all(self) -> list[int]:
        """Every number of rows that a batch on CUDA may have."""
        return sorted({self.of(count) for count in range(1, self.slots + 1)})


class BatchPool(Generic[B]):
    """One batch for every number of rows: a captured graph finds its tensors where they were."""

    def __init__(self, make: Callable[[int], B], buckets: BatchBuckets):
        self._make, self._buckets = make, buckets
        self._batches: dict[int, B] = {}

    def of(self, count: int) -> B:
        """The batch for so many conversations, at least one."""
        return self.with_rows(self._buckets.of(max(1, count)))

    def with_rows(self, rows: int) -> B:
        """The batch of exactly so many rows."""
        if rows not in self._batches:
            self._batches[rows] = self._make(rows)
        return self._batches[rows]


@torch.inference_mode()
def min_rows(weights: Iterable[Tensor]) -> int:
    """The least number of rows from which on a CPU's products with these weights give each row the same bits.

    With fewer rows its library takes kernels that sum in another order: a conversation's tokens could depend on how
    many others there are. Which numbers these are differs from processor to processor, so they are tried.
    """
    matrices = (
        weight[0] if weight.dim() == 3 else weight for weight in weights if len(weight) > 1 and weight.dim() > 1
    )
    shapes = {matrix.shape: matrix for matrix in matrices}
    random = torch.Generator().manual_seed(0)
    least = MIN_ROWS[0]
    for weight in shapes.values():
        rows = torch.randn(MAX_ROWS, weight.shape[1], generator=random).to(weight.dtype)
        expected = F.linear(rows, weight)
        while least < MIN_ROWS[-1] and not all(
            torch.equal(F.linear(rows[:count], weight), expected[:count]) for count in range(least, MAX_ROWS)
        ):
            least = next(count for count in MIN_ROWS if count > least)
    return least


def set_rows(values: Sequence[Sequence[int]], padding_slot: int, tensors: Sequence[Tensor]) -> None:
    """Copies columns of integers, the slot first, into tensors [R]; rows past the values are padding."""
    padding = [(padding_slot, *[0] * (len(tensors) - 1))] * (len(tensors[0]) - len(values))
    columns = torch.tensor([*values, *padding]).T.to(tensors[0].device)
    for tensor, column in zip(tensors, columns, strict=True):
        tensor.copy_(column)
