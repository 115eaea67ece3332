"""A decoder layer of transformers' with its projections packed: the same numbers from fewer, larger products."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Experts = Callable[[Tensor, Tensor, Tensor], Tensor]  # hidden, chosen, weights -> hidden
DENSE_SHARE = 4  # all experts are computed where a token's own are at least this fraction of them


@dataclass(frozen=True)
class Places:
    """Where a batch's new positions lie in the caches, and how they are rotated."""

    slots: Tensor  # [R]
    indices: Tensor  # [R, T], positions
    cos: Tensor  # [R, T, 1, D]
    sin: Tensor  # likewise


class Layer:
    """What a thinker, a talker and a code predictor do between reading a hidden state and attending, and after.

    Packed projections take the place of transformers' own, which become views of them: they are not held twice.
    """

    def __init__(self, layer: Any):
        attention = layer.self_attn
        self.head_size: int = attention.head_dim
        self.scale: float = attention.scaling
        self.heads = attention.q_proj.weight.shape[0] // self.head_size
        self.key_heads = attention.k_proj.weight.shape[0] // self.head_size
        self._in_norm, self._out_norm = layer.input_layernorm, layer.post_attention_layernorm
        self._qkv = pack([attention.q_proj, attention.k_proj, attention.v_proj])
        self._out = attention.o_proj.weight
        self._head_norm = torch.cat(
            [
                attention.q_norm.weight.expand(self.heads, -1),
                attention.k_norm.weight.expand(self.key_heads, -1),
            ]
        )  # [heads + key heads, D]
        self._head_eps: float = attention.q_norm.variance_epsilon
        self._feed_forward = self.make_feed_forward(layer.mlp)

    def make_feed_forward(self, mlp: Any) -> Any:
        """What follows attention, as `finish` calls it."""
        return feed_forward(mlp)

    def project(self, hidden: Tensor, places: Places, cache: Tensor) -> Tensor:
        """hidden [R, T, H] -> queries [R, T, heads, D], rotated; keys and values go to their places in the cache.

        cache: the layer's, [slots, 2 * key heads, positions, D], keys before values.
        """
        packed = F.linear(norm(hidden, self._in_norm), self._qkv).unflatten(-1, (-1, self.head_size))
        rotating = packed[:, :, : self.heads + self.key_heads]
        normed = F.rms_norm(rotating, (self.head_size,), eps=self._head_eps) * self._head_norm
        rotating.copy_(rotate(normed, places.cos, places.sin))
        cache[places.slots[:, None], :, places.indices] = packed[:, :, self.heads :]
        return packed[:, :, : self.heads]

    def finish(self, hidden: Tensor, attended: Tensor) -> Tensor:
        """The rest of the layer: hidden [R, T, H] and what it attended to [R, T, heads * D] -> [R, T, H].

        It may write into `hidden`.
        """
        hidden = hidden + F.linear(attended, self._out)
        return hidden + self._feed_forward(norm(hidden, self._out_norm))


def make_layer(layer: Any) -> Layer:
    """A layer of transformers' in the form for its device."""
    if layer.self_attn.q_proj.weight.is_cuda:
        from engine.fused_layer import FusedLayer  # its compiler comes with torch for CUDA alone

        return FusedLayer(layer)
    return Layer(layer)


def pack(linears: Sequence[Any]) -> Tensor:
    """The linears' weights as one; each linear's own becomes a view of it."""
    if any(linear.bias is not None for linear in linears):
        raise ValueError("these projections have no bias in Qwen3-Omni, but this checkpoint's have")
    packed = torch.cat([linear.weight for linear in linears])
    for linear, part in zip(linears, packed.split([len(linear.weight) for linear in linears]), strict=True):
        linear.weight.data = part
    return packed


def norm(hidden: Tensor, module: Any) -> Tensor:
    """transformers' RMS norm in one operation."""
    return F.rms_norm(hidden, (hidden.shape[-1],), module.weight, module.variance_epsilon)


def rotations(model: Any, positions: int) -> tuple[Tensor, Tensor]:
    """cos and sin of every position, each [positions, 1, D], as `rotate` wants them: the first half of sin negated."""
    weight = model.norm.weight
    cos, sin = model.rotary_emb(weight.new_empty(1), torch.arange(positions, device=weight.device)[None])
    sin = sin[0].clone()
    sin[:, : sin.shape[1] // 2].neg_()
    return cos[0].clone()[:, None], sin[:, None]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding in transformers' half-split layout; D is the last dimension of all three."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)


def is_dense(mlp: Any) -> bool:
    """Whether all experts of a mixture are computed: a token's own are a large part of them."""
    return hasattr(mlp, "experts") and bool(mlp.gate.num_experts <= DENSE_SHARE * mlp.gate.top_k)


def feed_forward(mlp: Any) -> Callable[[Tensor], Tensor]:
    """`mlp` in the form that is fastest: transformers' own experts only where there is no better one."""
    if not hasattr(mlp, "experts"):
        return GatedMlp(mlp)
    return Mixture(mlp, DenseExperts(mlp.experts) if is_dense(mlp) else mlp.experts)


class GatedMlp:
    """A gated feed-forward network with gate and up in one product."""

    def __init__(self, mlp: Any):
        self._in = pack([mlp.gate_proj, mlp.up_proj])
        self._out = mlp.down_proj.weight

    def __call__(self, x: Tensor) -> Tensor:
        """[..., H] -> [..., H]."""
        gate, up = F.linear(x, self._in).chunk(2, dim=-1)
        return F.linear(F.silu(gate) * up, self._out)


class Mixture:
    """Routing, the experts, and the talker's shared one."""

    def __init__(self, mlp: Any, experts: Experts):
        self._router, self._experts = mlp.gate, experts
        self._shared: tuple[GatedMlp, Tensor] | None = None
        if hasattr(mlp, "shared_expert"):
            self._shared = GatedMlp(mlp.shared_expert), mlp.shared_expert_gate.weight  # [1, H]

    def __call__(self, x: Tensor) -> Tensor:
        """[B, T, H] -> [B, T, H]."""
        flat = x.flatten(0, 1)
        _, weights, chosen = self._router(flat)
        out = self._experts(flat, chosen, weights)
        if self._shared:
            shared, gate = self._shared
            score = (flat * gate).sum(dim=-1, keepdim=True)  # as a product, its bits would depend on the rows
            out = out + torch.sigmoid(score) * shared(flat)
        return out.view_as(x)


class DenseExperts:
    """All experts of a small mixture in two products, each weighted by its routing, which is mostly zero.

    This is faster than picking a few small experts apart, and a row's result does not depend on which experts the
    other rows want. It holds copies of their weights.
    """

    def __init__(self, experts: Any):
        gate, up = experts.gate_up_proj.chunk(2, dim=1)  # [E, I, H] each
        self._count = len(gate)
        self._in = torch.cat([gate.flatten(0, 1), up.flatten(0, 1)])  # [2 * E * I, H]
        self._out = experts.down_proj.transpose(1, 2).contiguous()  # [E, I, H]

    def __call__(self, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """hidden [N, H], chosen [N, k] and their weights [N, k] -> [N, H]."""
        routing = weights.new_zeros(len(hidden), self._count).scatter_(1, chosen, weights)
        gate, up = F.linear(hidden, self._in).chunk(2, dim=-1)
        activated = (F.silu(gate) * up).unflatten(1, (self._count, -1)) * routing[:, :, None]  # [N, E, I]
        return torch.bmm(activated.transpose(0, 1), self._out).sum(dim=0)  # short sums: few rows have the same bits

    def add_to(self, hidden: Tensor, x: Tensor, chosen: Tensor, weights: Tensor) -> None:
        """The same of x [N, H], added to hidden [N, H]."""
        hidden += self(x, chosen, weights)
