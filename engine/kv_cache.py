"""Keys and values of a decoder's layers by slot, allocated once and written in place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from engine.attention import cache_positions
from engine.layer import rotate


class KVCache:
    """Cache of all slots. `buffer` is [layers, slots, 2 * key heads, positions, D], keys' heads before values'.

    Positions past a row's length hold padding and are masked out.
    """

    def __init__(self, model: Any, slots: int, positions: int):
        """Allocate a cache for transformers' text model `model`, in its dtype and on its device."""
        attention, weight = model.layers[0].self_attn, model.norm.weight
        self._rotary = model.rotary_emb
        self.key_heads: int = attention.k_proj.weight.shape[0] // attention.head_dim
        self.buffer: Tensor = weight.new_zeros(
            len(model.layers),
            slots,
            2 * self.key_heads,
            cache_positions(positions, weight.device),
            attention.head_dim,
        )

    @property
    def positions(self) -> int:
        """Capacity of a slot in positions."""
        return self.buffer.shape[3]

    @property
    def bytes_per_slot(self) -> int:
        """Size of a slot's keys and values in bytes."""
        return self.buffer[:, 0].numel() * self.buffer.element_size()

    def reset(self, slot: int) -> None:
        """Fill a slot with zeros."""
        self.buffer[:, slot] = 0

    def load(self, slot: int, prefix: Tensor) -> None:
        """Copy a result of `snapshot`, [layers, 2 * key heads, n, D], into a slot's first n positions."""
        self.buffer[:, slot, :, : prefix.shape[2]] = prefix

    def snapshot(self, slot: int, length: int) -> Tensor:
        """Return a copy of the first `length` positions of a slot: [layers, 2 * key heads, length, D]."""
        return self.buffer[:, slot, :, :length].clone()

    def copy(self, slot: int, to: int, length: int) -> None:
        """Copy the first `length` positions of a slot into slot `to`."""
        self.buffer[:, to, :, :length] = self.buffer[:, slot, :, :length]

    def evict(self, slot: int, kept: int, leaving: int, length: int) -> None:
        """Drop `leaving` of a slot's `length` positions, those after the first `kept`, and move the later ones up.

        Moved keys are rotated back by `leaving` positions in float32. They then equal keys computed at the new
        position, except for one rounding, and positions stay in the range on which the model was trained.
        """
        moved = self.buffer[:, slot, :, kept + leaving : length].clone()
        keys = moved[:, : self.key_heads]
        angles = self._rotary.inv_freq.float() * leaving  # [D / 2]
        cos = angles.cos().repeat(2)
        sin = torch.cat([angles.sin(), -angles.sin()])  # the inverse rotation of `engine.layer.rotations`
        keys.copy_(rotate(keys.float(), cos, sin))
        self.buffer[:, slot, :, kept : length - leaving] = moved
