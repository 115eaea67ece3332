"""A mixture's experts on CUDA for few tokens: each token's own experts are read where they lie, in two kernels.

For many tokens, who share experts, a grouped matrix product reads each expert once; torch has a kernel for that, in
bfloat16 and on Hopper and Blackwell, which never waits for the host. Elsewhere these two kernels serve any number.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

MOST_PAIRS = 64  # of token and expert; beyond it, of 128 experts, every third pair would read one that another reads
GROUPED_CAPABILITIES = (9, 10)
BLOCK_OUT, BLOCK_IN = 16, 256


class KernelExperts:
    """transformers' experts, called as they are: hidden states, chosen experts, their weights."""

    def __init__(self, experts: Any):
        self._experts = experts
        weight = experts.gate_up_proj
        major = torch.cuda.get_device_capability(weight.device)[0] if weight.is_cuda else 0
        self._grouped = weight.dtype == torch.bfloat16 and major in GROUPED_CAPABILITIES

    def __call__(self, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """hidden [N, H], chosen [N, k] and their weights [N, k] -> [N, H]."""
        if self._grouped and chosen.numel() > MOST_PAIRS:
            grouped: Tensor = self._experts(hidden, chosen, weights)
            return grouped
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
