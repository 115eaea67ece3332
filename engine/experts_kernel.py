"""A mixture's experts on CUDA, by kernels in the Triton language that never wait for the host.

For few tokens, each token's own experts are read where they lie, in two kernels. For many, who share experts, tokens
are sorted by expert and multiplied in blocks, so that an expert's weights are read once a block and not once a token.
In bfloat16, on Hopper and on Blackwell's data-centre cards, torch's own grouped product is used for that.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

MOST_PAIRS = 64  # of token and expert; beyond it, of 128 experts, every third pair would read one that another reads
GROUPED_CAPABILITIES = (9, 10)  # of torch's grouped product
BLOCK_OUT, BLOCK_IN = 16, 256  # channels of a program, for few tokens
BLOCK_PAIRS, BLOCK_COLUMNS, BLOCK_INNER = 16, 64, 64  # pairs and channels of a program, for many


class PairBlocks(NamedTuple):
    """Pairs of token and expert, sorted by expert, in blocks of one expert each."""

    order: Tensor  # [P], the pairs by expert
    expert: Tensor  # [blocks], of each block; the number of experts for a block without pairs
    first: Tensor  # [blocks], a block's first place in `order`
    end: Tensor  # [blocks], where its expert's pairs end


class KernelExperts:
    """transformers' experts, called as they are: hidden states, chosen experts, their weights."""

    def __init__(self, experts: Any):
        self._experts = experts
        weight = experts.gate_up_proj
        major = torch.cuda.get_device_capability(weight.device)[0] if weight.is_cuda else 0
        self._grouped_by_torch = weight.dtype == torch.bfloat16 and major in GROUPED_CAPABILITIES

    def __call__(self, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """hidden [N, H], chosen [N, k] and their weights [N, k] -> [N, H]."""
        if chosen.numel() <= MOST_PAIRS:
            return self.few(hidden, chosen, weights)
        if self._grouped_by_torch:
            grouped: Tensor = self._experts(hidden, chosen, weights)
            return grouped
        return self.many(hidden, chosen, weights)

    def few(self, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """The cost grows with the pairs."""
        tokens, choices = chosen.shape
        size, inner = hidden.shape[1], self._experts.down_proj.shape[2]
        activated = hidden.new_empty(tokens * choices, inner)
        gate_up[tokens * choices, triton.cdiv(inner, BLOCK_OUT)](
            hidden, chosen, self._experts.gate_up_proj, activated,
            choices=choices, size=size, inner=inner, block_out=BLOCK_OUT, block_in=BLOCK_IN,
        )  # fmt: skip
        out = torch.empty_like(hidden)
        down[tokens, triton.cdiv(size, BLOCK_OUT)](
            activated, chosen, weights, self._experts.down_proj, out,
            choices=choices, size=size, inner=inner, block_out=BLOCK_OUT, block_in=BLOCK_IN,
        )  # fmt: skip
        return out

    def many(self, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """The weights that are read grow with the experts that are chosen."""
        tokens, choices = chosen.shape
        size, inner = hidden.shape[1], self._experts.down_proj.shape[2]
        blocks = blocks_by_expert(chosen, len(self._experts.gate_up_proj))
        count = len(blocks.expert)
        activated = hidden.new_empty(tokens * choices, inner)  # in the blocks' order
        block_gate_up[count, triton.cdiv(inner, BLOCK_COLUMNS)](
            hidden, self._experts.gate_up_proj, activated, *blocks,
            experts=len(self._experts.gate_up_proj), choices=choices, size=size, inner=inner,
            block_pairs=BLOCK_PAIRS, block_columns=BLOCK_COLUMNS, block_inner=BLOCK_INNER,
        )  # fmt: skip
        given = hidden.new_empty(tokens * choices, size)  # by token
        block_down[count, triton.cdiv(size, BLOCK_COLUMNS)](
            activated, weights, self._experts.down_proj, given, *blocks,
            experts=len(self._experts.gate_up_proj), size=size, inner=inner,
            block_pairs=BLOCK_PAIRS, block_columns=BLOCK_COLUMNS, block_inner=BLOCK_INNER,
        )  # fmt: skip
        return given.view(tokens, choices, size).sum(dim=1)


def blocks_by_expert(chosen: Tensor, experts: int) -> PairBlocks:
    """Chosen experts [N, k] -> as many blocks as there could be, whatever was chosen: no value is looked at."""
    pairs = chosen.flatten()
    order = pairs.argsort(stable=True)
    counts = torch.zeros(experts, dtype=torch.int64, device=pairs.device).scatter_add_(0, pairs, torch.ones_like(pairs))
    ends = counts.cumsum(0)
    blocks_end = ((counts + BLOCK_PAIRS - 1) // BLOCK_PAIRS).cumsum(0)
    block = torch.arange(len(pairs) // BLOCK_PAIRS + experts, device=pairs.device)
    expert = torch.searchsorted(blocks_end, block, right=True)
    known = expert.clamp(max=experts - 1)
    before = blocks_end[known] - (counts[known] + BLOCK_PAIRS - 1) // BLOCK_PAIRS
    first = ends[known] - counts[known] + (block - before) * BLOCK_PAIRS
    return PairBlocks(order, expert, first, ends[known])


@triton.jit
def block_gate_up(
    hidden, weight, activated, order, expert_of, first_of, end_of,
    experts: tl.constexpr, choices: tl.constexpr, size: tl.constexpr, inner: tl.constexpr,
    block_pairs: tl.constexpr, block_columns: tl.constexpr, block_inner: tl.constexpr,
):  # fmt: skip
    """silu(gate) * up of a block of pairs by their expert, for some of the inner channels.

    weight: [experts, 2 * inner, size], the gates before the ups.
    """
    expert = tl.load(expert_of + tl.program_id(0))
    if expert < experts:
        place = tl.load(first_of + tl.program_id(0)) + tl.arange(0, block_pairs)
        there = place < tl.load(end_of + tl.program_id(0))
        token = tl.load(order + place, mask=there, other=0) // choices
        column = tl.program_id(1) * block_columns + tl.arange(0, block_columns)
        gates = weight + expert * (2 * inner * size) + column[None, :] * size
        gate = tl.zeros([block_pairs, block_columns], tl.float32)
        up = tl.zeros([block_pairs, block_columns], tl.float32)
        for start in range(0, size, block_inner):
            at = start + tl.arange(0, block_inner)
            x = tl.load(
                hidden + token[:, None] * size + at[None, :], mask=there[:, None] & (at < size)[None, :], other=0.0
            )
            inside = (at < size)[:, None] & (column < inner)[None, :]
            gate += tl.dot(x, tl.load(gates + at[:, None], mask=inside, other=0.0), input_precision="ieee")
            ups = tl.load(gates + inner * size + at[:, None], mask=inside, other=0.0)
            up += tl.dot(x, ups, input_precision="ieee")
        result = gate * tl.sigmoid(gate) * up
        mask = there[:, None] & (column < inner)[None, :]
        tl.store(activated + place[:, None] * inner + column[None, :], result.to(activated.dtype.element_ty), mask=mask)


@triton.jit
def block_down(
    activated, weights, weight, given, order, expert_of, first_of, end_of,
    experts: tl.constexpr, size: tl.constexpr, inner: tl.constexpr,
    block_pairs: tl.constexpr, block_columns: tl.constexpr, block_inner: tl.constexpr,
):  # fmt: skip
    """What a block of pairs' expert gives, weighted, for some channels. weight: [experts, size, inner]."""
    expert = tl.load(expert_of + tl.program_id(0))
    if expert < experts:
        place = tl.load(first_of + tl.program_id(0)) + tl.arange(0, block_pairs)
        there = place < tl.load(end_of + tl.program_id(0))
        pair = tl.load(order + place, mask=there, other=0)
        column = tl.program_id(1) * block_columns + tl.arange(0, block_columns)
        rows = weight + expert * (size * inner) + column[None, :] * inner
        total = tl.zeros([block_pairs, block_columns], tl.float32)
        for start in range(0, inner, block_inner):
            at = start + tl.arange(0, block_inner)
            mask = there[:, None] & (at < inner)[None, :]
            x = tl.load(activated + place[:, None] * inner + at[None, :], mask=mask, other=0.0)
            inside = (at < inner)[:, None] & (column < size)[None, :]
            total += tl.dot(x, tl.load(rows + at[:, None], mask=inside, other=0.0), input_precision="ieee")
        total = total * tl.load(weights + pair, mask=there, other=0.0).to(tl.float32)[:, None]
        mask = there[:, None] & (column < size)[None, :]
        tl.store(given + pair[:, None] * size + column[None, :], total.to(given.dtype.element_ty), mask=mask)


@triton.jit
def gate_up(
    hidden, chosen, weight, activated,
    choices: tl.constexpr, size: tl.constexpr, inner: tl.constexpr, block_out: tl.constexpr, block_in: tl.constexpr,
):  # fmt: skip
    """silu(gate) * up of one token by one of its experts, for some of the inner channels.

    weight: [experts, 2 * inner, size], the gates before the ups.
    """
    pair = tl.program_id(0)
    expert = tl.load(chosen + pair)
    channel = tl.program_id(1) * block_out + tl.arange(0, block_out)
    gates = weight + expert * (2 * inner * size) + channel[:, None] * size
    gate = tl.zeros([block_out], tl.float32)
    up = tl.zeros([block_out], tl.float32)
    for start in range(0, size, block_in):
        at = start + tl.arange(0, block_in)
        there = (channel < inner)[:, None] & (at < size)[None, :]
        x = tl.load(hidden + (pair // choices) * size + at, mask=at < size, other=0.0).to(tl.float32)[None, :]
        gate += tl.sum(tl.load(gates + at[None, :], mask=there, other=0.0).to(tl.float32) * x, 1)
        up += tl.sum(tl.load(gates + inner * size + at[None, :], mask=there, other=0.0).to(tl.float32) * x, 1)
    result = gate * tl.sigmoid(gate) * up
    tl.store(activated + pair * inner + channel, result.to(activated.dtype.element_ty), mask=channel < inner)


@triton.jit
def down(
    activated, chosen, weights, weight, out,
    choices: tl.constexpr, size: tl.constexpr, inner: tl.constexpr, block_out: tl.constexpr, block_in: tl.constexpr,
):  # fmt: skip
    """The weighted sum of what one token's experts give, for some of its channels. weight: [experts, size, inner]."""
    token = tl.program_id(0)
    channel = tl.program_id(1) * block_out + tl.arange(0, block_out)
    total = tl.zeros([block_out], tl.float32)
    for choice in range(choices):
        pair = token * choices + choice
        expert = tl.load(chosen + pair)
        rows = weight + expert * (size * inner) + channel[:, None] * inner
        given = tl.zeros([block_out], tl.float32)
        for start in range(0, inner, block_in):
            at = start + tl.arange(0, block_in)
            there = (channel < size)[:, None] & (at < inner)[None, :]
            x = tl.load(activated + pair * inner + at, mask=at < inner, other=0.0).to(tl.float32)[None, :]
            given += tl.sum(tl.load(rows + at[None, :], mask=there, other=0.0).to(tl.float32) * x, 1)
        total += given * tl.load(weights + pair).to(tl.float32)
    tl.store(out + token * size + channel, total.to(out.dtype.element_ty), mask=channel < size)
