"""The experts of a mixture on CUDA: kernels in the Triton language that need no synchronisation with the host.

A pair is a token and one of its chosen experts. For few pairs, two kernels read each pair's expert. Many pairs share
experts, so they are sorted by expert and each expert's weights are read once: by torch's grouped product in bfloat16
on Hopper and on Blackwell's data-centre cards, otherwise in blocks of pairs.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from engine.expert_pairs import BLOCK_PAIRS, SortedPairs, blocks_by_expert, sort_pairs

MAX_PAIRS = 64  # above it, with 128 experts, a third of the pairs would read the expert of another pair again
GROUPED_CAPABILITIES = (9, 10)  # CUDA compute capabilities of torch's grouped product, major numbers
BLOCK_OUT, BLOCK_IN = 16, 256  # channels of a program of `gate_up`
DOWN_OUT, DOWN_IN = 4, 256  # channels of a program of `down`, which reads all experts of a token in parallel
BLOCK_COLUMNS, BLOCK_INNER = 64, 64  # channels of a program of `block_gate_up` and `block_down`
COLUMNS = 1024  # channels of a program that processes one row


class KernelExperts:
    """transformers' experts: a sum over each token's chosen experts, weighted by the router."""

    def __init__(self, experts: Any):
        self._in, self._out = experts.gate_up_proj, experts.down_proj  # [E, 2 * I, H], [E, H, I]
        major = torch.cuda.get_device_capability(self._in.device)[0] if self._in.is_cuda else 0
        self._grouped_by_torch = self._in.dtype == torch.bfloat16 and major in GROUPED_CAPABILITIES

    def add_to(self, hidden: Tensor, x: Tensor, chosen: Tensor, weights: Tensor) -> None:
        """Add the output of the chosen experts [N, k] with their weights [N, k] for x [N, H] to hidden [N, H]."""
        if chosen.numel() <= MAX_PAIRS:
            self.add_pairs(hidden, x, chosen, weights)
        elif self._grouped_by_torch:
            self.add_grouped(hidden, x, chosen, weights)
        else:
            self.add_blocks(hidden, x, chosen, weights)

    def add_pairs(self, hidden: Tensor, x: Tensor, chosen: Tensor, weights: Tensor) -> None:
        """Compute `add_to` pair by pair: the cost grows with the number of pairs."""
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

    def add_grouped(self, hidden: Tensor, x: Tensor, chosen: Tensor, weights: Tensor) -> None:
        """Compute `add_to` with torch's product of groups of rows, each with its expert's matrix."""
        pairs = sort_pairs(chosen, len(self._in))
        sorted_x = x.index_select(0, pairs.order // chosen.shape[1])
        activated = silu_times(F.grouped_mm(sorted_x, self._in.mT, offs=pairs.ends), self._out.shape[2])
        self._combine(hidden, F.grouped_mm(activated, self._out.mT, offs=pairs.ends), pairs, weights)

    def add_blocks(self, hidden: Tensor, x: Tensor, chosen: Tensor, weights: Tensor) -> None:
        """Compute `add_to` in blocks of pairs of one expert."""
        tokens, choices = chosen.shape
        size, inner = self._out.shape[1:]
        experts = len(self._in)
        pairs = sort_pairs(chosen, experts)
        blocks = blocks_by_expert(pairs.ends, tokens * choices)
        activated, outputs = x.new_empty(tokens * choices, inner), x.new_empty(tokens * choices, size)
        block_gate_up[len(blocks.expert), triton.cdiv(inner, BLOCK_COLUMNS)](
            x, self._in, activated, pairs.order, *blocks,
            experts=experts, choices=choices, size=size, inner=inner,
            block_pairs=BLOCK_PAIRS, block_columns=BLOCK_COLUMNS, block_inner=BLOCK_INNER,
        )  # fmt: skip
        block_down[len(blocks.expert), triton.cdiv(size, BLOCK_COLUMNS)](
            activated, self._out, outputs, *blocks,
            experts=experts, size=size, inner=inner,
            block_pairs=BLOCK_PAIRS, block_columns=BLOCK_COLUMNS, block_inner=BLOCK_INNER,
        )  # fmt: skip
        self._combine(hidden, outputs, pairs, weights)

    def _combine(self, hidden: Tensor, outputs: Tensor, pairs: SortedPairs, weights: Tensor) -> None:
        """Add the weighted outputs [P, H] of the sorted pairs to hidden [N, H]."""
        tokens, choices = weights.shape
        size = hidden.shape[1]
        block = min(COLUMNS, triton.next_power_of_2(size))
        combine[tokens, triton.cdiv(size, block)](
            outputs, pairs.ranks, weights, hidden, choices=choices, size=size, block=block
        )


def silu_times(packed: Tensor, inner: int, gated: bool = False) -> Tensor:
    """Return silu(gate) * up [N, inner] of rows [N, gate, up ...].

    With `gated`, multiply each row by the sigmoid of the value after its gates and ups.
    """
    rows, width = packed.shape
    out = packed.new_empty(rows, inner)
    block = min(COLUMNS, triton.next_power_of_2(inner))
    silu_multiply[rows, triton.cdiv(inner, block)](packed, out, width, inner=inner, block=block, gated=gated)
    return out


@triton.jit
def silu_multiply(packed, out, width, inner: tl.constexpr, block: tl.constexpr, gated: tl.constexpr):
    """Compute one block of channels of one row, see `silu_times`."""
    row = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * block + tl.arange(0, block)
    gate = tl.load(packed + row * width + channel, mask=channel < inner, other=0.0).to(tl.float32)
    up = tl.load(packed + row * width + inner + channel, mask=channel < inner, other=0.0).to(tl.float32)
    result = gate * tl.sigmoid(gate) * up
    if gated:
        result = result * tl.sigmoid(tl.load(packed + row * width + 2 * inner).to(tl.float32))
    tl.store(out + row * inner + channel, result.to(out.dtype.element_ty), mask=channel < inner)


@triton.jit
def combine(outputs, ranks, weights, hidden, choices: tl.constexpr, size: tl.constexpr, block: tl.constexpr):
    """Add the weighted outputs of one token's experts to its hidden state, for one block of channels."""
    token = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * block + tl.arange(0, block)
    total = tl.load(hidden + token * size + channel, mask=channel < size, other=0.0).to(tl.float32)
    for choice in range(choices):
        rank = tl.load(ranks + token * choices + choice)
        weight = tl.load(weights + token * choices + choice).to(tl.float32)
        total += weight * tl.load(outputs + rank * size + channel, mask=channel < size, other=0.0).to(tl.float32)
    tl.store(hidden + token * size + channel, total.to(hidden.dtype.element_ty), mask=channel < size)


@triton.jit
def block_gate_up(
    hidden, weight, activated, order, expert_of, first_of, end_of,
    experts: tl.constexpr, choices: tl.constexpr, size: tl.constexpr, inner: tl.constexpr,
    block_pairs: tl.constexpr, block_columns: tl.constexpr, block_inner: tl.constexpr,
):  # fmt: skip
    """Compute silu(gate) * up of a block of pairs by their expert, for one block of inner channels.

    weight: [experts, 2 * inner, size], gates before ups.
    """
    expert = tl.load(expert_of + tl.program_id(0))
    if expert < experts:
        rank = tl.load(first_of + tl.program_id(0)) + tl.arange(0, block_pairs)
        is_pair = rank < tl.load(end_of + tl.program_id(0))
        token = tl.load(order + rank, mask=is_pair, other=0) // choices
        column = tl.program_id(1) * block_columns + tl.arange(0, block_columns)
        gates = weight + expert * (2 * inner * size) + column[None, :] * size
        gate = tl.zeros([block_pairs, block_columns], tl.float32)
        up = tl.zeros([block_pairs, block_columns], tl.float32)
        for start in range(0, size, block_inner):
            at = start + tl.arange(0, block_inner)
            x = tl.load(
                hidden + token[:, None] * size + at[None, :], mask=is_pair[:, None] & (at < size)[None, :], other=0.0
            )
            inside = (at < size)[:, None] & (column < inner)[None, :]
            gate += tl.dot(x, tl.load(gates + at[:, None], mask=inside, other=0.0), input_precision="ieee")
            ups = tl.load(gates + inner * size + at[:, None], mask=inside, other=0.0)
            up += tl.dot(x, ups, input_precision="ieee")
        result = gate * tl.sigmoid(gate) * up
        mask = is_pair[:, None] & (column < inner)[None, :]
        tl.store(activated + rank[:, None] * inner + column[None, :], result.to(activated.dtype.element_ty), mask=mask)


@triton.jit
def block_down(
    activated, weight, outputs, expert_of, first_of, end_of,
    experts: tl.constexpr, size: tl.constexpr, inner: tl.constexpr,
    block_pairs: tl.constexpr, block_columns: tl.constexpr, block_inner: tl.constexpr,
):  # fmt: skip
    """Compute the expert's output for a block of pairs, for one block of channels. weight: [experts, size, inner]."""
    expert = tl.load(expert_of + tl.program_id(0))
    if expert < experts:
        rank = tl.load(first_of + tl.program_id(0)) + tl.arange(0, block_pairs)
        is_pair = rank < tl.load(end_of + tl.program_id(0))
        column = tl.program_id(1) * block_columns + tl.arange(0, block_columns)
        rows = weight + expert * (size * inner) + column[None, :] * inner
        total = tl.zeros([block_pairs, block_columns], tl.float32)
        for start in range(0, inner, block_inner):
            at = start + tl.arange(0, block_inner)
            mask = is_pair[:, None] & (at < inner)[None, :]
            x = tl.load(activated + rank[:, None] * inner + at[None, :], mask=mask, other=0.0)
            inside = (at < inner)[:, None] & (column < size)[None, :]
            total += tl.dot(x, tl.load(rows + at[:, None], mask=inside, other=0.0), input_precision="ieee")
        mask = is_pair[:, None] & (column < size)[None, :]
        tl.store(outputs + rank[:, None] * size + column[None, :], total.to(outputs.dtype.element_ty), mask=mask)


@triton.jit
def gate_up(
    hidden, chosen, weight, activated,
    choices: tl.constexpr, size: tl.constexpr, inner: tl.constexpr, block_out: tl.constexpr, block_in: tl.constexpr,
):  # fmt: skip
    """Compute silu(gate) * up of one pair, for one block of inner channels.

    weight: [experts, 2 * inner, size], gates before ups.
    """
    pair = tl.program_id(0)
    expert = tl.load(chosen + pair)
    channel = tl.program_id(1) * block_out + tl.arange(0, block_out)
    gates = weight + expert * (2 * inner * size) + channel[:, None] * size
    gate = tl.zeros([block_out], tl.float32)
    up = tl.zeros([block_out], tl.float32)
    for start in range(0, size, block_in):
        at = start + tl.arange(0, block_in)
        inside = (channel < inner)[:, None] & (at < size)[None, :]
        x = tl.load(hidden + (pair // choices) * size + at, mask=at < size, other=0.0).to(tl.float32)[None, :]
        gate += tl.sum(tl.load(gates + at[None, :], mask=inside, other=0.0).to(tl.float32) * x, 1)
        up += tl.sum(tl.load(gates + inner * size + at[None, :], mask=inside, other=0.0).to(tl.float32) * x, 1)
    result = gate * tl.sigmoid(gate) * up
    tl.store(activated + pair * inner + channel, result.to(activated.dtype.element_ty), mask=channel < inner)


@triton.jit
def down(
    activated, chosen, weights, weight, hidden,
    choices: tl.constexpr, block_choices: tl.constexpr, size: tl.constexpr, inner: tl.constexpr,
    block_out: tl.constexpr, block_in: tl.constexpr,
):  # fmt: skip
    """Add the weighted outputs of one token's experts to its hidden state, for one block of channels.

    weight: [experts, size, inner]. The rows of all experts are loaded in parallel, because sequential loads would
    spend most of the time on memory latency.
    """
    token = tl.program_id(0)
    channel = tl.program_id(1) * block_out + tl.arange(0, block_out)
    choice = tl.arange(0, block_choices)
    pair = token * choices + choice
    expert = tl.load(chosen + pair, mask=choice < choices, other=0)
    rows = weight + expert[:, None] * (size * inner) + channel[None, :] * inner  # [choices, out]
    is_row = (choice < choices)[:, None] & (channel < size)[None, :]
    outputs = tl.zeros([block_choices, block_out], tl.float32)
    for start in range(0, inner, block_in):
        at = start + tl.arange(0, block_in)
        is_weight = is_row[:, :, None] & (at < inner)[None, None, :]
        w = tl.load(rows[:, :, None] + at[None, None, :], mask=is_weight, other=0.0).to(tl.float32)
        inside = (choice < choices)[:, None] & (at < inner)[None, :]
        x = tl.load(activated + pair[:, None] * inner + at[None, :], mask=inside, other=0.0).to(tl.float32)
        outputs += tl.sum(w * x[:, None, :], 2)
    share = tl.load(weights + pair, mask=choice < choices, other=0.0).to(tl.float32)
    target = hidden + token * size + channel
    total = tl.load(target, mask=channel < size, other=0.0).to(tl.float32) + tl.sum(outputs * share[:, None], 0)
    tl.store(target, total.to(hidden.dtype.element_ty), mask=channel < size)
