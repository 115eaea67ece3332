"""A transformer decoder over slots: keys and values stay where they were put, and never grow past their place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.attention import CpuAttention, Cursor, cache_positions
from engine.layer import Layer, norm, rotate, rotations

Attend = Callable[[Tensor, Tensor, float], Tensor]


class SlotDecoder:
    """Runs the layers of a thinker or a talker for any subset of its slots at once.

    Each slot owns a row of the preallocated caches; the row behind the last is the spare one, which a batch's padding
    uses. Rows need not be in step: a cursor says how many positions each has seen. What lies behind a row's end is
    never attended to.
    """

    def __init__(self, model: Any, slots: int, positions: int):
        self._model = model
        self._layers = [Layer(layer) for layer in model.layers]
        weight = model.norm.weight
        self.device: torch.device = weight.device
        positions = cache_positions(positions, self.device)
        first = self._layers[0]
        self._cache = weight.new_zeros(
            len(self._layers), slots + 1, 2 * first.key_heads, positions, first.head_size
        )  # keys, then values
        self._cos, self._sin = rotations(model, positions)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights and of the caches."""
        return self._cache.dtype

    def forward(self, embeddings: Tensor, cursor: Cursor) -> Tensor:
        """Feeds [R, T, H], each row at its place, and advances the cursor; returns last hidden states [R, T, H]."""
        return self.forward_and_tap(embeddings, cursor, 0)[0]

    def forward_and_tap(self, embeddings: Tensor, cursor: Cursor, layers: int) -> tuple[Tensor, Tensor]:
        """As `forward`, and what the first `layers` layers made of it [R, T, H]."""
        length = embeddings.shape[1]
        positions = cursor.starts[:, None] + torch.arange(length, device=self.device)
        here = (cursor.slots[:, None], slice(None), positions)
        cos, sin = self._cos[positions], self._sin[positions]
        attend = self._attention(cursor, length)
        hidden = tapped = embeddings
        for number, (layer, cache) in enumerate(zip(self._layers, self._cache, strict=True), start=1):
            queries, keys_values = layer.project(hidden, cos, sin)
            cache[here] = keys_values
            hidden = layer.finish(hidden, attend(queries, cache, layer.scale))
            if number == layers:
                tapped = hidden
        cursor.advance(length)
        return norm(hidden, self._model.norm), tapped

    def read(self, embeddings: Tensor) -> Tensor:
        """Keys and values of an opening [1, n, H], in no slot yet: [layers, 2 * key heads, n, D]."""
        length = embeddings.shape[1]
        hidden, kept = embeddings, []
        for layer in self._layers:
            queries, keys_values = layer.project(hidden, self._cos[:length], self._sin[:length])
            keys, values = keys_values.transpose(1, 2).chunk(2, dim=1)
            heard = F.scaled_dot_product_attention(
                queries.transpose(1, 2), keys, values, is_causal=True, scale=layer.scale, enable_gqa=True
            )
            hidden = layer.finish(hidden, heard.transpose(1, 2).flatten(2))
            kept.append(keys_values[0].transpose(0, 1))
        return torch.stack(kept)

    def place(self, slot: int, opening: Tensor) -> None:
        """Begins a slot with an opening that was read before."""
        self._cache[:, slot, :, : opening.shape[2]] = opening

    def copy(self, slot: int, to: int, length: int) -> None:
        """Puts the first `length` positions of a slot into another."""
        self._cache[:, to, :, :length] = self._cache[:, slot, :, :length]

    def forget(self, slot: int, kept: int, leaving: int, length: int) -> None:
        """Drops `leaving` of a slot's `length` positions, those behind the first `kept`; the rest moves up.

        A moved key is rotated back by as much, in float32, so that it is what it would be at its new position but for
        one rounding: positions never leave the range that the model knows.
        """
        moved = self._cache[:, slot, :, kept + leaving : length].clone()
        keys = moved[:, : self._layers[0].key_heads]
        angles = self._model.rotary_emb.inv_freq.float() * leaving  # [D / 2]
        cos = angles.cos().repeat(2)
        sin = torch.cat([angles.sin(), -angles.sin()])  # as in `rotations`, but backwards
        keys.copy_(rotate(keys.float(), cos, sin))
        self._cache[:, slot, :, kept : length - leaving] = moved

    @property
    def bytes_per_slot(self) -> int:
        """Bytes of a slot's keys and values."""
        return self._cache[:, 0].numel() * self._cache.element_size()

    def wipe(self, slot: int) -> None:
        """Forgets all of a slot."""
        self._cache[:, slot] = 0

    def _attention(self, cursor: Cursor, length: int) -> Attend:
        if self.device.type == "cpu":
            first = self._layers[0]
            return CpuAttention(cursor, length, self._cache.shape[3], first.heads // first.key_heads, self.dtype)
        from engine.attention_kernel import KernelAttention  # its compiler comes with torch for CUDA alone

        return KernelAttention(cursor, length)
