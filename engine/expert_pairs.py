"""Pairs of a token and one of its chosen experts, sorted by expert on the device."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_PAIRS = 16  # pairs of a block
SORT_BLOCK = 1024  # pairs that a program of `sort_by_expert` reads in one step


class SortedPairs(NamedTuple):
    """P pairs of a token and one of its experts, sorted by expert."""

    order: Tensor  # [P] int64, indices of the pairs in sorted order
    ranks: Tensor  # [P] int64, the inverse: each pair's index in the sorted order
    ends: Tensor  # [experts] int32, index after each expert's last pair


class PairBlocks(NamedTuple):
    """Blocks of sorted pairs, each of one expert."""

    expert: Tensor  # [blocks], each block's expert; the number of experts for a block without pairs
    first: Tensor  # [blocks], index of a block's first pair in the sorted order
    end: Tensor  # [blocks], index after the last pair of the block's expert


def sort_pairs(chosen: Tensor, experts: int) -> SortedPairs:
    """Sort the pairs of the chosen experts [N, k] by expert; pairs of one expert keep their order."""
    pairs = chosen.numel()
    order, ranks = torch.empty_like(chosen.view(-1)), torch.empty_like(chosen.view(-1))
    ends = torch.empty(experts, dtype=torch.int32, device=chosen.device)
    block = min(SORT_BLOCK, triton.next_power_of_2(pairs))
    sort_by_expert[experts,](chosen, order, ranks, ends, pairs, block=block)
    return SortedPairs(order, ranks, ends)


def blocks_by_expert(ends: Tensor, pairs: int) -> PairBlocks:
    """Return the blocks of `pairs` sorted pairs whose experts end at `ends` [experts].

    The number of blocks is the maximum over all choices of experts, so the host reads no value of `ends`.
    """
    ends = ends.long()
    counts = ends.diff(prepend=ends.new_zeros(1))
    blocks_end = ((counts + BLOCK_PAIRS - 1) // BLOCK_PAIRS).cumsum(0)
    block = torch.arange(pairs // BLOCK_PAIRS + len(ends), device=ends.device)
    expert = torch.searchsorted(blocks_end, block, right=True)
    known = expert.clamp(max=len(ends) - 1)
    before = blocks_end[known] - (counts[known] + BLOCK_PAIRS - 1) // BLOCK_PAIRS
    first = ends[known] - counts[known] + (block - before) * BLOCK_PAIRS
    return PairBlocks(expert, first, ends[known])


@triton.jit
def sort_by_expert(chosen, order, ranks, ends, pairs, block: tl.constexpr):
    """Store one expert's pairs after the pairs of all experts with smaller numbers."""
    expert = tl.program_id(0)
    pair = tl.arange(0, block)
    rank = 0
    for start in range(0, pairs, block):
        of = tl.load(chosen + start + pair, mask=start + pair < pairs, other=expert)
        rank += tl.sum((of < expert).to(tl.int32), 0)
    for start in range(0, pairs, block):
        of = tl.load(chosen + start + pair, mask=start + pair < pairs, other=expert + 1)
        own = (of == expert).to(tl.int32)
        at = rank + tl.cumsum(own, 0) - own
        tl.store(order + at, (start + pair).to(tl.int64), mask=own == 1)
        tl.store(ranks + start + pair, at.to(tl.int64), mask=own == 1)
        rank += tl.sum(own, 0)
    tl.store(ends + expert, rank)
