"""The code predictor's decoder: begins anew with every codec frame, so all rows are always in step."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from engine.layer import Layer, norm, rotations


class FrameDecoder:
    """Sixteen positions at most, the same for every row: no slots, no mask."""

    def __init__(self, model: Any, rows: int, positions: int):
        self._model = model
        self._layers = [Layer(layer) for layer in model.layers]
        first = self._layers[0]
        self._key_heads, self._groups = first.key_heads, first.heads // first.key_heads
        self._cache = model.norm.weight.new_zeros(
            len(self._layers), rows, 2 * first.key_heads, positions, first.head_size
        )  # keys, then values
        self._cos, self._sin = rotations(model, positions)

    def forward(self, inputs: Tensor, start: int) -> Tensor:
        """Feeds [B, T, H] at positions start...; returns the last position's hidden state [B, H]."""
        batch, length, _ = inputs.shape
        end = start + length
        cos, sin = self._cos[start:end], self._sin[start:end]
        hidden = inputs
        for layer, cache in zip(self._layers, self._cache[:, :batch], strict=True):
            queries, keys_values = layer.project(hidden, cos, sin)
            cache[:, :, start:end] = keys_values.transpose(1, 2)
            keys, values = cache[:, : self._key_heads, :end], cache[:, self._key_heads :, :end]
            if (
                length == 1
            ):  # query heads of a key head as positions: the fast kernels want as many of one as of the other
                folded = queries[:, 0].unflatten(1, (self._key_heads, self._groups))
                heard = F.scaled_dot_product_attention(folded, keys, values, scale=layer.scale).flatten(1)[:, None]
            else:  # only ever at the start
                heard = F.scaled_dot_product_attention(
                    queries.transpose(1, 2), keys, values, is_causal=True, scale=layer.scale, enable_gqa=True
                )
                heard = heard.transpose(1, 2).flatten(2)
            hidden = layer.finish(hidden, heard)
        return norm(hidden[:, -1], self._model.norm)
