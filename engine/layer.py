"""A decoder layer of transformers with packed projections: the same numbers from fewer, larger matrix products."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Experts = Callable[[Tensor, Tensor, Tensor], Tensor]  # hidden, chosen, weights -> hidden
DENSE_SHARE = 4  # all experts are computed if there are at most this many for each one that a token chooses


@dataclass(frozen=True)
class CacheTargets:
    """Slots and positions at which a batch's new keys and values are written, and their rotations."""

    slots: Tensor  # [R]
    indices: Tensor  # [R, T], positions
    cos: Tensor  # [R, T, 1, D]
    sin: Tensor  # [R, T, 1, D]


class Layer:
    """A decoder layer without its attention, for the thinker, the talker and the code predictor.

    The projections are packed; transformers' own weights become views of the packed ones, so memory does not grow.
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
        """Return the feed-forward network in the form that `finish` calls."""
        return feed_forward(mlp)

    def project(self, hidden: Tensor, targets: CacheTargets, cache: Tensor) -> Tensor:
        """Return rotated queries [R, T, heads, D] for hidden [R, T, H]; write keys and values into the cache.

        `cache` is the layer's: [slots, 2 * key heads, positions, D], keys before values.
        """
        packed = F.linear(norm(hidden, self._in_norm), self._qkv).unflatten(-1, (-1, self.head_size))
        rotating = packed[:, :, : self.heads + self.key_heads]
        normed = F.rms_norm(rotating, (self.head_size,), eps=self._head_eps) * self._head_norm
        rotating.copy_(rotate(normed, targets.cos, targets.sin))
        cache[targets.slots[:, None], :, targets.indices] = packed[:, :, self.heads :]
        return packed[:, :, : self.heads]

    def finish(self, hidden: Tensor, attended: Tensor) -> Tensor:
        """Return the layer's output [R, T, H] for hidden [R, T, H] and the result of attention [R, T, heads * D].

        May overwrite `hidden`.
        """
        hidden = hidden + F.linear(attended, self._out)
        return hidden + self._feed_forward(norm(hidden, self._out_norm))


def make_layer(layer: Any) -> Layer:
    """Return transformers' layer in the form for its device."""
    if layer.self_attn.q_proj.weight.is_cuda:
        from engine.fused_layer import FusedLayer  # the compiler comes only with torch for CUDA

        return FusedLayer(layer)
    return Layer(layer)


def pack(linears: Sequence[Any]) -> Tensor:
    """Concatenate the weights of linear modules; each module's weight becomes a view of the result."""
    if any(linear.bias is not None for linear in linears):
        raise ValueError("expected projections without bias, as in Qwen3-Omni, got a checkpoint with biases")
    packed = torch.cat([linear.weight for linear in linears])
    for linear, view in zip(linears, packed.split([len(linear.weight) for linear in linears]), strict=True):
        linear.weight.data = view
    return packed


def norm(hidden: Tensor, module: Any) -> Tensor:
    """Compute transformers' RMS norm in one operation."""
    return F.rms_norm(hidden, (hidden.shape[-1],), module.weight, module.variance_epsilon)


def rotations(model: Any, positions: int) -> tuple[Tensor, Tensor]:
    """Return cos and sin of every position for `rotate`, each [positions, 1, D], the first half of sin negated."""
    weight = model.norm.weight
    cos, sin = model.rotary_emb(weight.new_empty(1), torch.arange(positions, device=weight.device)[None])
    sin = sin[0].clone()
    sin[:, : sin.shape[1] // 2].neg_()
    return cos[0].clone()[:, None], sin[:, None]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary position embedding in transformers' half-split layout; D is the last dimension of all arguments."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)


def is_dense(mlp: Any) -> bool:
    """Return whether to compute all experts of a mixture: a token chooses a large part of them."""
    return hasattr(mlp, "experts") and bool(mlp.gate.num_experts <= DENSE_SHARE * mlp.gate.top_k)


def feed_forward(mlp: Any) -> Callable[[Tensor], Tensor]:
    """Return the fastest form of `mlp`; large mixtures use transformers' own experts."""
    if not hasattr(mlp, "experts"):
        return GatedMlp(mlp)
    return Mixture(mlp, DenseExperts(mlp.experts) if is_dense(mlp) else mlp.experts)


class GatedMlp:
    """A gated feed-forward network that computes gate and up in one product."""

    def __init__(self, mlp: Any):
        self._in = pack([mlp.gate_proj, mlp.up_proj])
        self._out = mlp.down_proj.weight

    def __call__(self, x: Tensor) -> Tensor:
        """Map [..., H] to [..., H]."""
        gate, up = F.linear(x, self._in).chunk(2, dim=-1)
        return F.linear(F.silu(gate) * up, self._out)


class Mixture:
    """A mixture of experts: router, experts and, in the talker, the shared expert."""

    def __init__(self, mlp: Any, experts: Experts):
        self._router, self._experts = mlp.gate, experts
        self._shared: tuple[GatedMlp, Tensor] | None = None
        if hasattr(mlp, "shared_expert"):
            self._shared = GatedMlp(mlp.shared_expert), mlp.shared_expert_gate.weight  # [1, H]

    def __call__(self, x: Tensor) -> Tensor:
        """Map [B, T, H] to [B, T, H]."""
        flat = x.flatten(0, 1)
        _, weights, chosen = self._router(flat)
        out = self._experts(flat, chosen, weights)
        if self._shared:
            shared, gate = self._shared
            # Not a matrix product: with a single output channel its bits would depend on the number of rows.
            score = (flat * gate).sum(dim=-1, keepdim=True)
            out = out + torch.sigmoid(score) * shared(flat)
        return out.view_as(x)


class DenseExperts:
    """All experts of a small mixture in two products, weighted by a routing matrix whose entries are mostly zero.

    This is faster than a product for each chosen expert if experts are small, and a row's result does not depend on
    the experts that other rows choose. Holds copies of the experts' weights.
    """

    def __init__(self, experts: Any):
        gate, up = experts.gate_up_proj.chunk(2, dim=1)  # [E, I, H] each
        self._count = len(gate)
        self._in = torch.cat([gate.flatten(0, 1), up.flatten(0, 1)])  # [2 * E * I, H]
        self._out = experts.down_proj.transpose(1, 2).contiguous()  # [E, I, H]

    def __call__(self, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Return the experts' output [N, H] for hidden [N, H], chosen experts [N, k] and their weights [N, k]."""
        routing = weights.new_zeros(len(hidden), self._count).scatter_(1, chosen, weights)
        gate, up = F.linear(hidden, self._in).chunk(2, dim=-1)
        activated = (F.silu(gate) * up).unflatten(1, (self._count, -1)) * routing[:, :, None]  # [N, E, I]
        # One short sum for each expert: small batches round a row like larger ones.
        return torch.bmm(activated.transpose(0, 1), self._out).sum(dim=0)

    def add_to(self, hidden: Tensor, x: Tensor, chosen: Tensor, weights: Tensor) -> None:
        """Add the experts' output for x [N, H] to hidden [N, H]."""
        hidden += self(x, chosen, weights)
