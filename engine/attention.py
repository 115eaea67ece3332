"""What every decoder here does with a layer of transformers', whatever it keeps its keys and values in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def project(attention: Any, hidden: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """hidden [B, T, H] -> queries, keys (both rotated) and values, each [B, T, heads, D].

    cos, sin: [T, D], or [B, T, D] where rows stand at different positions.
    """
    shape = (*hidden.shape[:2], -1, attention.head_dim)
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    queries = rotate(attention.q_norm(attention.q_proj(hidden).view(shape)), cos, sin)
    keys = rotate(attention.k_norm(attention.k_proj(hidden).view(shape)), cos, sin)
    return queries, keys, attention.v_proj(hidden).view(shape)


def new_cache(model: Any, rows: int, positions: int) -> tuple[Tensor, Tensor]:
    """Zeroed keys and values [layers, rows, heads, positions, D], of the weights' kind and in their place."""
    attention = model.layers[0].self_attn
    weight = attention.k_proj.weight
    heads = weight.shape[0] // attention.head_dim
    keys = weight.new_zeros(len(model.layers), rows, heads, positions, attention.head_dim)
    return keys, torch.zeros_like(keys)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding in transformers' half-split layout; D is the last dimension of all three."""
    half = x.shape[-1] // 2
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], dim=-1) * sin


def feed_forward(layer: Any, hidden: Tensor, attended: Tensor) -> Tensor:
    """The rest of a layer: both residuals around its feed-forward network or its experts."""
    hidden = hidden + attended
    return hidden + layer.mlp(layer.post_attention_layernorm(hidden))
