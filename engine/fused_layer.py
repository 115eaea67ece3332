"""A decoder layer on CUDA: except for attention and experts, one kernel between each two matrix products.

A tick runs hundreds of layers on few rows. After reading its weights, the cost of a layer is the number of its kernels,
about two microseconds each; torch's own operations would be twice as many. Kernels sum in float32.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from engine.experts_kernel import KernelExperts, silu_times
from engine.layer import CacheTargets, DenseExperts, Layer, is_dense, pack

GATE_ROWS = 8  # the gate's one row is padded to 8: rows of a matrix product come in multiples of 8


class FeedForward(Protocol):
    """Interface of the feed-forward network that follows attention."""

    def add_to(self, hidden: Tensor, x: Tensor) -> None:
        """Add the network's output for x [N, H] to hidden [N, H]."""


class FusedLayer(Layer):
    """`Layer` in half the number of kernels; `finish` overwrites the hidden states that it receives."""

    def make_feed_forward(self, mlp: Any) -> FeedForward:
        """Override `Layer.make_feed_forward`."""
        return FusedMixture(mlp) if hasattr(mlp, "experts") else FusedMlp(mlp)

    def project(self, hidden: Tensor, targets: CacheTargets, cache: Tensor) -> Tensor:
        """Override `Layer.project`."""
        packed = F.linear(rms_norm(hidden, self._in_norm), self._qkv)
        rows, length, _ = packed.shape
        queries = packed.new_empty(rows, length, self.heads, self.head_size)
        rotate_and_store[rows * length, self.heads + 2 * self.key_heads](
            packed, self._head_norm, targets.cos, targets.sin, targets.slots, targets.indices, queries, cache,
            self._head_eps, length, targets.cos.stride(0), *targets.indices.stride(), cache.stride(0), cache.stride(1),
            heads=self.heads, key_heads=self.key_heads, size=self.head_size, num_warps=1,
        )  # fmt: skip
        return queries

    def finish(self, hidden: Tensor, attended: Tensor) -> Tensor:
        """Override `Layer.finish`."""
        flat = hidden.view(-1, hidden.shape[2])
        flat.addmm_(attended.flatten(0, 1), self._out.T)
        self._feed_forward.add_to(flat, rms_norm(flat, self._out_norm))
        return hidden


class FusedMlp:
    """A gated feed-forward network."""

    def __init__(self, mlp: Any):
        self._in = pack([mlp.gate_proj, mlp.up_proj])
        self._out = mlp.down_proj.weight

    def add_to(self, hidden: Tensor, x: Tensor) -> None:
        """Implement `FeedForward`."""
        hidden.addmm_(silu_times(F.linear(x, self._in), self._out.shape[1]), self._out.T)


class FusedMixture:
    """A mixture of experts; the gate of the talker's shared expert is an additional row of its packed product."""

    def __init__(self, mlp: Any):
        self._router = mlp.gate
        self._experts = DenseExperts(mlp.experts) if is_dense(mlp) else KernelExperts(mlp.experts)
        self._shared: tuple[Tensor, Tensor] | None = None
        if hasattr(mlp, "shared_expert"):
            shared, gate = mlp.shared_expert, mlp.shared_expert_gate.weight  # [1, H]
            rows = [shared.gate_proj.weight, shared.up_proj.weight, gate, gate.new_zeros(GATE_ROWS - 1, gate.shape[1])]
            self._shared = torch.cat(rows), shared.down_proj.weight

    def add_to(self, hidden: Tensor, x: Tensor) -> None:
        """Implement `FeedForward`."""
        weights, chosen = choose_experts(F.linear(x, self._router.weight), self._router)
        self._experts.add_to(hidden, x, chosen, weights)
        if self._shared:
            packed, out = self._shared
            hidden.addmm_(silu_times(F.linear(x, packed), out.shape[1], gated=True), out.T)


def rms_norm(hidden: Tensor, module: Any) -> Tensor:
    """Compute transformers' RMS norm of hidden [..., H]."""
    out, size = torch.empty_like(hidden), hidden.shape[-1]
    norm_rows[hidden.numel() // size,](
        hidden, module.weight, out, module.variance_epsilon, size=size, block=triton.next_power_of_2(size)
    )
    return out


def choose_experts(logits: Tensor, router: Any) -> tuple[Tensor, Tensor]:
    """Route logits [N, experts] like transformers: return weights [N, k] and experts [N, k] int64."""
    tokens, experts = logits.shape
    weights = logits.new_empty(tokens, router.top_k)
    chosen = torch.empty(tokens, router.top_k, dtype=torch.int64, device=logits.device)
    choose[tokens,](
        logits, weights, chosen,
        experts=experts, choices=router.top_k, block=triton.next_power_of_2(experts),
        block_choices=triton.next_power_of_2(router.top_k), normalise=bool(router.norm_topk_prob), num_warps=1,
    )  # fmt: skip
    return weights, chosen


@triton.jit
def norm_rows(hidden, weight, out, eps, size: tl.constexpr, block: tl.constexpr):
    """Normalise one row."""
    channel = tl.arange(0, block)
    index = tl.program_id(0).to(tl.int64) * size + channel
    x = tl.load(hidden + index, mask=channel < size, other=0.0).to(tl.float32)
    x = x * tl.rsqrt(tl.sum(x * x, 0) / size + eps) * tl.load(weight + channel, mask=channel < size).to(tl.float32)
    tl.store(out + index, x.to(out.dtype.element_ty), mask=channel < size)


@triton.jit
def rotate_and_store(
    packed, weight, cos, sin, slots, indices, queries, cache,
    eps, length, rotation_row, index_row, index_time, cache_slot, cache_head,
    heads: tl.constexpr, key_heads: tl.constexpr, size: tl.constexpr,
):  # fmt: skip
    """Process one head of one position: norm and rotate a query or key; write a key or value to the cache.

    packed: [R, T, heads + 2 * key heads, size]; cos, sin: [R, T, 1, size], the first half of sin negated.
    """
    token, head = tl.program_id(0), tl.program_id(1)
    row, time = token // length, token % length
    channel = tl.arange(0, size)
    source = packed + (token.to(tl.int64) * (heads + 2 * key_heads) + head) * size
    x = tl.load(source + channel).to(tl.float32)
    if head < heads + key_heads:
        scale = tl.rsqrt(tl.sum(x * x, 0) / size + eps)
        other = (channel + size // 2) % size
        paired = tl.load(source + other).to(tl.float32) * scale * tl.load(weight + head * size + other).to(tl.float32)
        angle = row * rotation_row + time * size + channel
        x = x * scale * tl.load(weight + head * size + channel).to(tl.float32)
        x = x * tl.load(cos + angle).to(tl.float32) + paired * tl.load(sin + angle).to(tl.float32)
    if head < heads:
        target = queries + (token.to(tl.int64) * heads + head) * size
    else:
        index = tl.load(indices + row * index_row + time * index_time)
        target = cache + tl.load(slots + row) * cache_slot + (head - heads) * cache_head + index * size
    tl.store(target + channel, x.to(queries.dtype.element_ty))


@triton.jit
def choose(
    logits, weights, chosen,
    experts: tl.constexpr, choices: tl.constexpr, block: tl.constexpr, block_choices: tl.constexpr,
    normalise: tl.constexpr,
):  # fmt: skip
    """Store the `choices` likeliest experts of one token and their probabilities."""
    token = tl.program_id(0)
    expert = tl.arange(0, block)
    logit = tl.load(logits + token * experts + expert, mask=expert < experts, other=float("-inf")).to(tl.float32)
    probability = tl.exp(logit - tl.max(logit, 0))
    probability = tl.where(expert < experts, probability / tl.sum(probability, 0), -1.0)
    rank = tl.arange(0, block_choices)
    top = tl.zeros([block_choices], tl.float32)
    best = tl.zeros([block_choices], tl.int32)
    for choice in range(choices):
        likeliest = tl.minimum(tl.argmax(probability, 0), experts - 1)  # argmax of NaNs may be a padding lane
        top = tl.where(rank == choice, tl.max(probability, 0), top)
        best = tl.where(rank == choice, likeliest, best)
        probability = tl.where(expert == likeliest, -1.0, probability)
    if normalise:
        top = top / tl.sum(top, 0)
    is_choice = rank < choices
    tl.store(weights + token * choices + rank, top.to(weights.dtype.element_ty), mask=is_choice)
    tl.store(chosen + token * choices + rank, best.to(tl.int64), mask=is_choice)
