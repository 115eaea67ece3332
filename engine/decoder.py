"""A transformer decoder over the slots of a `KVCache`.

Re-implements the forward pass of `Qwen3OmniMoeThinkerTextModel` and `Qwen3OmniMoeTalkerModel` (transformers 5.20.2)
for text positions: one position index per token, no vision.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from engine.attention import CachePositions, CpuAttention
from engine.kv_cache import KVCache
from engine.layer import CacheTargets, make_layer, norm, rotations
from engine.onnx_steps import OnnxSteps

Attend = Callable[[Tensor, Tensor, float], Tensor]


class Decoder:
    """The layers of a thinker or a talker, run for any subset of the cache's slots at once.

    Rows may be at different positions: `CachePositions` holds each row's position.
    """

    def __init__(self, model: Any, cache: KVCache):
        self._norm = model.norm
        self._single_position: CpuAttention | None = None  # attention of the last step of single positions
        self._steps = OnnxSteps(model) if OnnxSteps.possible(model) else None  # single positions on a CPU
        self._layers = [make_layer(layer) for layer in model.layers]
        self._cache = cache
        self._cos, self._sin = rotations(model, cache.positions)
        self.device: torch.device = cache.buffer.device
        self.dtype: torch.dtype = cache.buffer.dtype

    def forward(self, embeddings: Tensor, positions: CachePositions) -> Tensor:
        """Append embeddings [R, T, H] to the rows, advance `positions`, return the last layer's states [R, T, H]."""
        if self._steps and embeddings.shape[1] == 1:
            return self._step(self._steps, embeddings[:, 0], positions)[:, None]
        return self.forward_with_layer(embeddings, positions, 0)[0]

    def forward_with_layer(
        self, embeddings: Tensor, positions: CachePositions, layer_count: int
    ) -> tuple[Tensor, Tensor]:
        """Return what `forward` does, and the hidden states after the first `layer_count` layers [R, T, H]."""
        length = embeddings.shape[1]
        indices = positions.starts[:, None] + torch.arange(length, device=self.device)
        targets = CacheTargets(positions.slots, indices, self._cos[indices], self._sin[indices])
        attend = self._attention(positions, length)
        middle, hidden = embeddings, embeddings.clone(memory_format=torch.contiguous_format)  # layers write into it
        for number, (layer, cache) in enumerate(zip(self._layers, self._cache.buffer, strict=True), start=1):
            queries = layer.project(hidden, targets, cache)
            hidden = layer.finish(hidden, attend(queries, cache, layer.scale))
            if number == layer_count:
                middle = hidden.clone()
        positions.advance(length)
        return norm(hidden, self._norm), middle

    def _step(self, steps: OnnxSteps, embeddings: Tensor, positions: CachePositions) -> Tensor:
        """Append one position [R, H] to each row: attention in torch, the rest of the layers in ONNX Runtime."""
        starts = positions.starts
        cos, sin = self._cos[starts], self._sin[starts]  # [R, 1, D]
        attend, scale = self._single_attention(positions), self._layers[0].scale
        hidden, queries, keys_values = steps.first(embeddings, cos, sin)
        last = len(self._layers) - 1
        for number, cache in enumerate(self._cache.buffer):
            cache[positions.slots, :, starts] = keys_values
            attended = attend(queries[:, None], cache, scale)[:, 0]
            if number < last:
                hidden, queries, keys_values = steps.between(number, hidden, attended, cos, sin)
        positions.advance(1)
        return steps.last(hidden, attended)

    def _single_attention(self, positions: CachePositions) -> CpuAttention:
        """Return attention for one position of each row; within a tick, reuse the previous step's and its mask."""
        attention = self._single_position
        if attention is None or not attention.advance_to(positions):
            attention = self._single_position = self._cpu_attention(positions, 1)
        return attention

    def _cpu_attention(self, positions: CachePositions, length: int) -> CpuAttention:
        groups = self._layers[0].heads // self._layers[0].key_heads
        return CpuAttention(positions, length, self._cache.positions, groups, self.dtype)

    def _attention(self, positions: CachePositions, length: int) -> Attend:
        if self.device.type == "cpu":
            return self._cpu_attention(positions, length)
        from engine.attention_kernel import KernelAttention  # the compiler comes only with torch for CUDA

        return KernelAttention(positions, length)
