"""A decoder layer on CUDA: but for attention and experts, what lies between two matrix products is one kernel.

A tick is hundreds of layers on few rows. What such a layer costs beside its weights is the number of its kernels, some
two microseconds each: as torch's own operations they would be twice as many. Sums are in float32 until they are stored.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from engine.experts_kernel import KernelExperts, silu_times
from engine.layer import DenseExperts, Layer, Places, is_dense, pack

GATE_ROWS = 8  # that the shared expert's gate takes in a packed product: rows come in eights


class FeedForward(Protocol):
    """What follows attention."""

    def add_to(self, hidden: Tensor, x: Tensor) -> None:
        """Adds its output for x [N, H] to hidden [N, H]."""


class FusedLayer(Layer):
    """As `Layer`, in half the kernels; `finish` writes into the hidden states that it is given."""

    def make_feed_forward(self, mlp: Any) -> FeedForward:
        """As `Layer.make_feed_forward`."""
        return FusedMixture(mlp) if hasattr(mlp, "experts") else FusedMlp(mlp)

    def project(self, hidden: Tensor, places: Places, cache: Tensor) -> Tensor:
        """As `Layer.project`."""
        packed = F.linear(rms_norm(hidden, self._in_norm), self._qkv)
        rows, length, _ = packed.shape
        queries = packed.new_empty(rows, length, self.heads, self.head_size)
        rotate_and_keep[rows * length, self.heads + 2 * self.key_heads](
            packed, self._head_norm, places.cos, places.sin, places.slots, places.indices, queries, cache,
            self._head_eps, length, places.cos.stride(0), *places.indices.stride(), cache.stride(0), cache.stride(1),
            heads=self.heads, key_heads=self.key_heads, size=self.head_size, num_warps=1,
        )  # fmt: skip
        return queries

    def finish(self, hidden: Tensor, attended: Tensor) -> Tensor:
        """As `Layer.finish`."""
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
        """As `FeedForward`."""
        hidden.addmm_(silu_times(F.linear(x, self._in), self._out.shape[1]), self._out.T)


class FusedMixture:
    """Routing, the experts, and the talker's shared one, whose gate is a further row of its packed product."""

    def __init__(self, mlp: Any):
        self._router = mlp.gate
        self._experts = DenseExperts(mlp.experts) if is_dense(mlp) else KernelExperts(mlp.experts)
        self._shared: tuple[Tensor, Tensor] | None = None
        if hasattr(mlp, "shared_expert"):
            shared, gate = mlp.shared_expert, mlp.shared_expert_gate.weight  # [1, H]
            rows = [shared.gate_proj.weight, shared.up_proj.weight, gate, gate.new_zeros(GATE_ROWS - 1, gate.shape[1])]
            self._shared = torch.cat(rows), shared.down_proj.weight

    def add_to(self, hidden: Tensor, x: Tensor) -> None:
        """As `FeedForward`."""
        weights, chosen = choose_experts(F.linear(x, self._router.weight), self._router)
        self._experts.add_to(hidden, x, chosen, weights)
        if self._shared:
            packed, out = self._shared
            hidden.addmm_(silu_times(F.linear(x, packed), out.shape[1], gated=True), out.T)


def rms_norm(hidden: Tensor, module: Any) -> Tensor:
    """transformers' RMS norm of hidden [..., H]."""
    out, size = torch.empty_like(hidden), hidden.shape[-1]
    norm_rows[hidden.numel() // size,](
        hidden, module.weight, out, module.variance_epsilon, size=size, block=triton.next_power_of_2(size)
    )
    return out


def choose_experts(logits: Tensor, router: Any) -> tuple[Tensor, Tensor]:
    """transformers' routing of logits [N, experts]: weights [N, k] and experts [N, k] int64."""
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
    """One row."""
    channel = tl.arange(0, block)
    place = tl.program_id(0).to(tl.int64) * size + channel
    x = tl.load(hidden + place, mask=channel < size, other=0.0).to(tl.float32)
    x = x * tl.rsqrt(tl.sum(x * x, 0) / size + eps) * tl.load(weight + channel, mask=channel < size).to(tl.float32)
    tl.store(out + place, x.to(out.dtype.element_ty), mask=channel < size)


@triton.jit
def rotate_and_keep(
    packed, weight, cos, sin, slots, indices, queries, cache,
    eps, length, rotation_row, index_row, index_time, cache_slot, cache_head,
    heads: tl.constexpr, key_heads: tl.constexpr, size: tl.constexpr,
):  # fmt: skip
    """One head of one position: a query or key is normed and rotated; keys and values go into the cache.

    packed: [R, T, heads + 2 * key heads, size]; cos, sin: [R, T, 1, size], the first half of sin negated.
    """
    place, head = tl.program_id(0), tl.program_id(1)
    row, time = place // length, place % length
    channel = tl.arange(0, size)
    source = packed + (place.to(tl.int64) * (heads + 2 * key_heads) + head) * size
    x = tl.load(source + channel).to(tl.float32)
    if head < heads + key_heads:
        scale = tl.rsqrt(tl.sum(x * x, 0) / size + eps)
        other = (channel + size // 2) % size
        turned = tl.load(source + other).to(tl.float32) * scale * tl.load(weight + head * size + other).to(tl.float32)
        angle = row * rotation_row + time * size + channel
        x = x * scale * tl.load(weight + head * size + channel).to(tl.float32)
        x = x * tl.load(cos + angle).to(tl.float32) + turned * tl.load(sin + angle).to(tl.float32)
    if head < heads:
        target = queries + (place.to(tl.int64) * heads + head) * size
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
    """The likeliest experts of one token and their probabilities."""
    token = tl.program_id(0)
    expert = tl.arange(0, block)
    logit = tl.load(logits + token * experts + expert, mask=expert < experts, other=float("-inf")).to(tl.float32)
    share = tl.exp(logit - tl.max(logit, 0))
    share = tl.where(expert < experts, share / tl.sum(share, 0), -1.0)
    place = tl.arange(0, block_choices)
    found = tl.zeros([block_choices], tl.float32)
    best = tl.zeros([block_choices], tl.int32)
    for choice in range(choices):
        likeliest = tl.minimum(tl.argmax(share, 0), experts - 1)  # of NaNs it may be any lane
        found = tl.where(place == choice, tl.max(share, 0), found)
        best = tl.where(place == choice, likeliest, best)
        share = tl.where(expert == likeliest, -1.0, share)
    if normalise:
        found = found / tl.sum(found, 0)
    there = place < choices
    tl.store(weights + token * choices + place, found.to(weights.dtype.element_ty), mask=there)
    tl.store(chosen + token * choices + place, best.to(tl.int64), mask=there)
