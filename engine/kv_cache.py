"""Keys and values of a decoder's layers by slot: allocated once, written in place, never longer than their slot."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from engine.attention import cache_positions
from engine.layer import rotate


class KVCache:
    """`buffer` is [layers, slots, 2 * key heads, positions, D]: the keys' heads, then the values'.

    Positions past a row's length hold padding and are masked out.
    """

    def __init__(self, model: Any, slots: int, positions: int):
        """For transformers' text model `model`, in its dtype and on its device."""
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
        """Positions of a slot."""
        return self.buffer.shape[3]

    @property
    def bytes_per_slot(self) -> int:
        """Bytes of a slot's keys and values."""
        return self.buffer[:, 0].numel() * self.buffer.element_size()

    def reset(self, slot: int) -> None:
        """Zeroes a slot."""
        self.buffer[:, slot] = 0

    def load(self, slot: int, prefix: Tensor) -> None:
        """Begins a slot with a prefix that `snapshot` gave: [layers, 2 * key heads, n, D]."""
        self.buffer[:, slot, :, : prefix.shape[2]] = prefix

    def snapshot(self, slot: int, length: int) -> Tensor:
        """A copy of the first `length` positions of a slot: [layers, 2 * key heads, length, D]."""
        return self.buffer[:, slot, :, :length].clone()

    def copy(self, slot: int, to: int, length: int) -> None:
        """Copies the first `length` positions of a slot into another."""
        self.buffer[:, to, :, :length] = self.buffer[:, slot, :, :length]

    def evict(self, slot: int, kept: int, leaving: int, length: int) -> None:
        """Drops `leaving` of a slot's `length` positions, those after the first `kept`; the rest moves up.

        A moved key is rotated back by as much, in float32, so that it is what it would be at its new position but for
        one rounding: positions never leave the range that the model knows.
        """
        moved = self.buffer[:, slot, :, kept + leaving : length].clone()
        keys = moved[:, : self.key_heads]
        angles = self._rotary.inv_freq.float() * leaving  # [D / 2]
        cos = angles.cos().repeat(2)
        sin = torch.cat([angles.sin(), -angles.sin()])  # as in `engine.layer.rotations`, but backwards
        keys.copy_(rotate(keys.float(), cos, sin))
        self.buffer[:, slot, :, kept : length - leaving] = moved
