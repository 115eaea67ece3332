"""A transformer decoder over slots: transformers' own layers, and keys and values that stay where they were put."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.attention import feed_forward, new_cache, project


class SlotDecoder:
    """Runs the layers of a thinker or a talker for any subset of its slots at once.

    Each slot owns a row of the preallocated caches. Rows need not be in step: a row's `start` says how many
    positions it has seen. What lies behind a row's end is never attended to, so a slot needs no wiping to be used
    again; `wipe` is there so that nothing of a conversation outlives it.
    """

    def __init__(self, model: Any, slots: int, positions: int):
        self.model = model
        self.positions = positions
        self._keys, self._values = new_cache(model, slots, positions)

    @property
    def device(self) -> torch.device:
        """Where the caches lie."""
        return self._keys.device

    def forward(self, embeddings: Tensor, slots: list[int], starts: list[int]) -> Tensor:
        """Feeds [B, T, H], row b at positions starts[b]... of slot slots[b]; returns last hidden states [B, T, H]."""
        length = embeddings.shape[1]
        end = max(starts) + length
        rows = torch.tensor(slots, device=self.device)
        positions = torch.tensor(starts, device=self.device)[:, None] + torch.arange(length, device=self.device)
        visible = torch.arange(end, device=self.device) <= positions[:, None, :, None]  # [B, 1, T, end]
        cos, sin = self.model.rotary_emb(embeddings, positions)

        hidden = embeddings
        for layer, layer_keys, layer_values in zip(self.model.layers, self._keys, self._values, strict=True):
            queries, keys, values = project(layer.self_attn, layer.input_layernorm(hidden), cos, sin)
            layer_keys[rows[:, None], :, positions] = keys
            layer_values[rows[:, None], :, positions] = values
            heard = F.scaled_dot_product_attention(
                queries.transpose(1, 2),
                layer_keys[rows, :, :end],
                layer_values[rows, :, :end],
                attn_mask=visible,
                scale=layer.self_attn.scaling,
                enable_gqa=True,
            )  # [B, heads, T, D]
            hidden = feed_forward(layer, hidden, layer.self_attn.o_proj(heard.transpose(1, 2).flatten(2)))
        return self.model.norm(hidden)

    def wipe(self, slot: int) -> None:
        """Forgets all of a slot."""
        self._keys[:, slot] = 0
        self._values[:, slot] = 0
