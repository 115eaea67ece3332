"""A mixture's experts on CUDA, by kernels in the Triton language that never wait for the host.

For few tokens, each token's own experts are read where they lie, in two kernels. For many, who share experts, tokens
are sorted by expert, so that an expert's weights are read once and not once a token: in bfloat16, on Hopper and on
Blackwell's data-centre cards, by torch's own grouped product, else in blocks of pairs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

MAX_PAIRS = 64  # of token and expert; beyond it, of 128 experts, every third pair would read one that another reads
GROUPED_CAPABILITIES = (9, 10)  # of torch's grouped product
BLOCK_OUT, BLOCK_IN = 16, 256  # channels of a program of `gate_up`
DOWN_OUT, DOWN_IN = 4, 256  # channels of a program of `down`, which reads all of a token's experts side by side
BLOCK_PAIRS, BLOCK_COLUMNS, BLOCK_INNER = 16, 64, 64  # pairs and channels of a program, for many
SORTED = 1024  # pairs that a program of `sort_by_expert` looks at, at once
COLUMNS = 1024  # channels of a program that works on one row


class SortedPairs(NamedTuple):
    """Pairs of token and expert, by expert."""

    order: Tensor  # [P] the pairs
    places: Tensor  # [P] each pair's place among them
    ends: Tensor  # [experts] int32, where each expert's pairs end


class PairBlocks(NamedTuple):
    """Sorted pairs, in blocks of one expert each."""

    expert: Tensor  # [blocks], of each block; the number of experts for a block without pairs
    first: Tensor  # [blocks], a block's first place among the sorted pairs
    end: Tensor  # [blocks], where its expert's pairs end


class KernelExperts:
    """transformers' experts: hidden states, chosen experts, their weights."""

    def __init__(self, experts: Any):
        self._in, self._out = experts.gate_up_proj, experts.down_proj  # [E, 2 * I, H], [E, H, I]
        major = torch.cuda.get_device_capability(self._in.device)[0] if self._in.is_cuda else 0
        self._grouped_by_torch = self._in.dtype == torch.bfloat16 and major in GROUPED_CAPABILITIES

    def add_to(self, hidden: Tensor, x: Tensor, chosen: Tensor, weights: Tensor) -> None:
        """Adds what the chosen experts [N, k] with their weights [N, k] give for x [N, H] to hidden [N, H]."""
        if chosen.numel() <= MAX_PAIRS:
            self.few(hidden, x, chosen, weights)
        elif self._grouped_by_torch:
            self.grouped(hidden, x, chosen, weights)
        else:
            self.many(hidden, x, chosen, weights)

    def few(self, hidden: Tensor, x: Tensor, chosen: Tensor, weights: Tensor) -> None:
        """The cost grows with the pairs."""
        tokens, choices = chosen.shape
        size, inner = self._out.shape[1:]
        activated = x.new_empty(tokens * choices, inner)
        gate_up[tokens * choices, triton.cdiv(inner, BLOCK_OUT)](
            x, chosen, self._in, activated,
            choices=choices, size=size, inner=inner, block_out=BLOCK_OUT, block_in=BLOCK_IN,
        )  # fmt: skip
        down[tokens, triton.cdiv(size, DOWN_OUT)](
            activated, chosen, weights, self._out, hidden,
            choices=choices, block_choices=triton.next_power_of_2(choices), size=size, inner=inner,
            block_out=DOWN_OUT, block_in=DOWN_IN if inner % DOWN_IN == 0 else DOWN_IN // 2,
        )  # fmt: skip

    def grouped(self, hidden: Tensor, x: Tensor, chosen: Tensor, weights: Tensor) -> None:
        """By torch's product of groups of rows with a matrix each."""
        pairs = sort_pairs(chosen, len(self._in))
        sorted_x = x.index_select(0, pairs.order // chosen.shape[1])
        activated = silu_times(F.grouped_mm(sorted_x, self._in.mT, offs=pairs.ends), self._out.shape[2])
        self._combine(hidden, F.grouped_mm(activated, self._out.mT, offs=pairs.ends), pairs, weights)

    def many(self, hidden: Tensor, x: Tensor, chosen: Tensor, weights: Tensor) -> None:
        """By blocks of pairs."""
        tokens, choices = chosen.shape
        size, inner = self._out.shape[1:]
        experts = len(self._in)
        pairs = sort_pairs(chosen, experts)
        blocks = blocks_by_expert(pairs.ends, tokens * choices)
        activated, given = x.new_empty(tokens * choices, inner), x.new_empty(tokens * choices, size)
        block_gate_up[len(blocks.expert), triton.cdiv(inner, BLOCK_COLUMNS)](
            x, self._in, activated, pairs.order, *blocks,
            experts=experts, choices=choices, size=size, inner=inner,
            block_pairs=BLOCK_PAIRS, block_columns=BLOCK_COLUMNS, block_inner=BLOCK_INNER,
        )  # fmt: skip
        block_down[len(blocks.expert), triton.cdiv(size, BLOCK_COLUMNS)](
            activated, self._out, given, *blocks,
            experts=experts, size=size, inner=inner,
            block_pairs=BLOCK_PAIRS, block_columns=BLOCK_COLUMNS, block_inner=BLOCK_INNER,
        )  # fmt: skip
        self._combine(hidden, given, pairs, weights)

    def _combine(self, hidden: Tensor, given: Tensor, pairs: SortedPairs, weights: Tensor) -> None:
        tokens, choices = weights.shape
        size = hidden.shape[1]
        block = min(COLUMNS, triton.next_power_of_2(size))
        combine[tokens, triton.cdiv(size, block)](
            given, pairs.places, weights, hidden, choices=choices, size=size, block=block
        )


def silu_times(packed: Tensor, inner: int, gated: bool = False) -> Tensor:
    """silu(gate) * up of rows [N, gate, up ...] -> [N, inner]; `gated`: times the sigmoid of the number behind them."""
    rows, width = packed.shape
    out = packed.new_empty(rows, inner)
    block = min(COLUMNS, triton.next_power_of_2(inner))
    silu_multiply[rows, triton.cdiv(inner, block)](packed, out, width, inner=inner, block=block, gated=gated)
    return out


def sort_pairs(chosen: Tensor, experts: int) -> SortedPairs:
    """Chosen experts [N, k] -> their pairs, those of an expert in their own order."""
    pairs = chosen.numel()
    order, places = torch.empty_like(chosen.view(-1)), torch.empty_like(chosen.view(-1))
    ends = torch.empty(experts, dtype=torch.int32, device=chosen.device)
    block = min(SORTED, triton.next_power_of_2(pairs))
    sort_by_expert[experts,](chosen, order, places, ends, pairs, block=block)
    return SortedPairs(order, places, ends)


def blocks_by_expert(ends: Tensor, pairs: int) -> PairBlocks:
    """Where each expert's pairs end -> as many blocks as there could be, whatever was chosen: no value is looked at."""
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
def sort_by_expert(chosen, order, places, ends, pairs, block: tl.constexpr):
    """One expert's pairs: they come after those of all experts before it."""
    expert = tl.program_id(0)
    pair = tl.arange(0, block)
    place = 0
    for start in range(0, pairs, block):
        of = tl.load(chosen + start + pair, mask=start + pair < pairs, other=expert)
        place += tl.sum((of < expert).to(tl.int32), 0)
    for start in range(0, pairs, block):
        of = tl.load(chosen + start + pair, mask=start + pair < pairs, other=expert + 1)
        own = (of == expert).to(tl.int32)
        at = place + tl.cumsum(own, 0) - own
        tl.store(order + at, (start + pair).to(tl.int64), mask=own == 1)
        tl.store(places + start + pair, at.to(tl.int64), mask=own == 1)
        place += tl.sum(own, 0)
    tl.store(ends + expert, place)


@triton.jit
def silu_multiply(packed, out, width, inner: tl.constexpr, block: tl.constexpr, gated: tl.constexpr):
    """Some channels of one row."""
    row = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * block + tl.arange(0, block)
    gate = tl.load(packed + row * width + channel, mask=channel < inner, other=0.0).to(tl.float32)
    up = tl.load(packed + row * width + inner + channel, mask=channel < inner, other=0.0).to(tl.float32)
    result = gate * tl.sigmoid(gate) * up
    if gated:
        result = result * tl.sigmoid(tl.load(packed + row * width + 2 * inner).to(tl.float32))
    tl.store(out + row * inner + channel, result.to(out.dtype.element_ty), mask=channel < inner)


@triton.jit
def combine(given, places, weights, hidden, choices: tl.constexpr, size: tl.constexpr, block: tl.constexpr):
    """Adds the weighted sum of what one token's experts give, for some channels."""
    token = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * block + tl.arange(0, block)
    total = tl.load(hidden + token * size + channel, mask=channel < size, other=0.0).to(tl.float32)
    for choice in range(choices):
        place = tl.load(places + token * choices + choice)
        weight = tl.load(weights + token * choices + choice).to(tl.float32)
        total += weight * tl.load(given + place * size + channel, mask=channel < size, other=0.0).to(tl.float32)
    tl.store(hidden + token * size + channel, total.to(hidden.dtype.element_ty), mask=channel < size)


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
    activated, weight, given, expert_of, first_of, end_of,
    experts: tl.constexpr, size: tl.constexpr, inner: tl.constexpr,
    block_pairs: tl.constexpr, block_columns: tl.constexpr, block_inner: tl.constexpr,
):  # fmt: skip
    """What a block of pairs' expert gives, for some channels. weight: [experts, size, inner]."""
    expert = tl.load(expert_of + tl.program_id(0))
    if expert < experts:
        place = tl.load(first_of + tl.program_id(0)) + tl.arange(0, block_pairs)
        there = place < tl.load(end_of + tl.program_id(0))
        column = tl.program_id(1) * block_columns + tl.arange(0, block_columns)
        rows = weight + expert * (size * inner) + column[None, :] * inner
        total = tl.zeros([block_pairs, block_columns], tl.float32)
        for start in range(0, inner, block_inner):
            at = start + tl.arange(0, block_inner)
            mask = there[:, None] & (at < inner)[None, :]
            x = tl.load(activated + place[:, None] * inner + at[None, :], mask=mask, other=0.0)
            inside = (at < inner)[:, None] & (column < size)[None, :]
            total += tl.dot(x, tl.load(rows + at[:, None], mask=inside, other=0.0), input_precision="ieee")
        mask = there[:, None] & (column < size)[None, :]
        tl.store(given + place[:, None] * size + column[None, :], total.to(given.dtype.element_ty), mask=mask)


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
    activated, chosen, weights, weight, hidden,
    choices: tl.constexpr, block_choices: tl.constexpr, size: tl.constexpr, inner: tl.constexpr,
    block_out: tl.constexpr, block_in: tl.constexpr,
):  # fmt: skip
    """Adds the weighted sum of what one token's experts give, for some of its channels. weight: [experts, size, inner].

    All experts' rows are asked for at once: one after the other, most of the time would go by in waiting for memory.
    """
    token = tl.program_id(0)
    channel = tl.program_id(1) * block_out + tl.arange(0, block_out)
    choice = tl.arange(0, block_choices)
    pair = token * choices + choice
    expert = tl.load(chosen + pair, mask=choice < choices, other=0)
    rows = weight + expert[:, None] * (size * inner) + channel[None, :] * inner  # [choices, out]
    asked = (choice < choices)[:, None] & (channel < size)[None, :]
    given = tl.zeros([block_choices, block_out], tl.float32)
    for start in range(0, inner, block_in):
        at = start + tl.arange(0, block_in)
        there = asked[:, :, None] & (at < inner)[None, None, :]
        w = tl.load(rows[:, :, None] + at[None, None, :], mask=there, other=0.0).to(tl.float32)
        inside = (choice < choices)[:, None] & (at < inner)[None, :]
        x = tl.load(activated + pair[:, None] * inner + at[None, :], mask=inside, other=0.0).to(tl.float32)
        given += tl.sum(w * x[:, None, :], 2)
    share = tl.load(weights + pair, mask=choice < choices, other=0.0).to(tl.float32)
    place = hidden + token * size + channel
    total = tl.load(place, mask=channel < size, other=0.0).to(tl.float32) + tl.sum(given * share[:, None], 0)
    tl.store(place, total.to(hidden.dtype.element_ty), mask=channel < size)
