"""A transformer decoder over slots: transformers' own layers, and keys and values that stay where they were put."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


class SlotDecoder:
    """Runs the layers of a thinker, a talker or a code predictor for any subset of its slots at once.

    Each slot owns a row of the preallocated caches. Rows need not be in step: a row's `start` says how many
    positions it has seen. What lies behind a row's end is never attended to, so a slot needs no wiping to be used
    again; `wipe` is there so that nothing of a conversation outlives it.
    """

    def __init__(self, model: Any, slots: int, positions: int):
        attention = model.layers[0].self_attn
        weight = attention.k_proj.weight
        heads = weight.shape[0] // attention.head_dim
        shape = (len(model.layers), slots, heads, positions, attention.head_dim)
        self.model = model
        self.positions = positions
        self._keys = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
        self._values = torch.zeros_like(self._keys)

    @property
    def device(self) -> torch.device:
        """Where the caches lie."""
        return self._keys.device

    @property
    def cache_bytes(self) -> int:
        """Bytes of the keys and values of all slots."""
        return 2 * self._keys.numel() * self._keys.element_size()

    def forward(self, embeddings: Tensor, slots: list[int], starts: list[int]) -> Tensor:
        """Feeds [B, T, H], row b at positions starts[b]... of slot slots[b]; returns last hidden states [B, T, H]."""
        length = embeddings.shape[1]
        end = max(starts) + length
        rows = torch.tensor(slots, device=self.device)
        positions = torch.tensor(starts, device=self.device)[:, None] + torch.arange(length, device=self.device)
        visible = torch.arange(end, device=self.device) <= positions[:, None, :, None]  # [B, 1, T, end]
        cos, sin = self.model.rotary_emb(embeddings, positions)

        hidden = embeddings
        for index, layer in enumerate(self.model.layers):
            attended = self._attend(index, layer, layer.input_layernorm(hidden), rows, positions, visible, cos, sin)
            hidden = hidden + attended
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        return self.model.norm(hidden)

    def wipe(self, slot: int) -> None:
        """Forgets all of a slot."""
        self._keys[:, slot] = 0
        self._values[:, slot] = 0

    def _attend(
        self,
        index: int,
        layer: Any,
        hidden: Tensor,
        rows: Tensor,
        positions: Tensor,
        visible: Tensor,
        cos: Tensor,
        sin: Tensor,
    ) -> Tensor:
        attention = layer.self_attn
        shape = (*hidden.shape[:2], -1, attention.head_dim)  # [B, T, heads, D]
        query = _rotate(attention.q_norm(attention.q_proj(hidden).view(shape)), cos, sin).transpose(1, 2)
        keys, values = self._keys[index], self._values[index]  # [slots, heads, positions, D]
        keys[rows[:, None], :, positions] = _rotate(attention.k_norm(attention.k_proj(hidden).view(shape)), cos, sin)
        values[rows[:, None], :, positions] = attention.v_proj(hidden).view(shape)
        end = visible.shape[-1]
        heard = F.scaled_dot_product_attention(
            query,
            keys[rows, :, :end],
            values[rows, :, :end],
            attn_mask=visible,
            scale=attention.scaling,
            enable_gqa=True,
        )
        return attention.o_proj(heard.transpose(1, 2).flatten(2))


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding in transformers' half-split layout. x: [B, T, heads, D]; cos, sin: [B, T, D]."""
    half = x.shape[-1] // 2
    return x * cos[:, :, None] + torch.cat([-x[..., half:], x[..., :half]], dim=-1) * sin[:, :, None]
