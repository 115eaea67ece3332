"""The code predictor's decoder: begins anew with every codec frame, so all rows are always in step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.attention import feed_forward, new_cache, project


class FrameDecoder:
    """Sixteen positions at most, the same for every row: no gathering, no mask, rotations known beforehand."""

    def __init__(self, model: Any, rows: int, positions: int):
        self._model = model
        self._keys, self._values = new_cache(model, rows, positions)
        cos, sin = model.rotary_emb(self._keys, torch.arange(positions, device=self._keys.device)[None])
        self._cos, self._sin = cos[0], sin[0]  # [positions, D]

    def forward(self, inputs: Tensor, start: int) -> Tensor:
        """Feeds [B, T, H] at positions start...; returns the last position's hidden state [B, H]."""
        batch, length, _ = inputs.shape
        end = start + length
        here = (slice(batch), slice(None), slice(start, end))
        hidden = inputs
        for layer, layer_keys, layer_values in zip(self._model.layers, self._keys, self._values, strict=True):
            queries, keys, values = project(
                layer.self_attn, layer.input_layernorm(hidden), self._cos[start:end], self._sin[start:end]
            )
            layer_keys[here] = keys.transpose(1, 2)
            layer_values[here] = values.transpose(1, 2)
            heard = F.scaled_dot_product_attention(
                queries.transpose(1, 2),
                layer_keys[:batch, :, :end],
                layer_values[:batch, :, :end],
                is_causal=length > 1,  # only ever at the start
                scale=layer.self_attn.scaling,
                enable_gqa=True,
            )  # [B, heads, T, D]
            hidden = feed_forward(layer, hidden, layer.self_attn.o_proj(heard.transpose(1, 2).flatten(2)))
        return self._model.norm(hidden[:, -1])
