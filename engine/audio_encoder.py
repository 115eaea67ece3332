"""The thinker's ears: transformers' audio encoder for windows of one length, all of a batch at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

FLOAT16_BOUND = torch.finfo(torch.float16).max - 1000  # transformers' own, after every layer


class AudioEncoder:
    """Each row is a window of its own, of at most one block of the encoder (100 frames): nothing is cut or padded."""

    def __init__(self, tower: Any):
        self._tower = tower

    def __call__(self, log_mel: Tensor) -> Tensor:
        """[B, 128, T] -> embeddings of audio tokens [B, T / 8, H]."""
        tower = self._tower
        maps = log_mel[:, None].to(tower.conv2d1.weight.dtype)
        for convolution in (tower.conv2d1, tower.conv2d2, tower.conv2d3):
            maps = F.gelu(convolution(maps))
        hidden = tower.conv_out(maps.permute(0, 3, 1, 2).flatten(2))  # [B, tokens, d]
        hidden = hidden + tower.positional_embedding.positional_embedding[: hidden.shape[1]].to(hidden.dtype)
        for layer in tower.layers:
            hidden = hidden + self._attend(layer.self_attn, layer.self_attn_layer_norm(hidden))
            hidden = hidden + layer.fc2(layer.activation_fn(layer.fc1(layer.final_layer_norm(hidden))))
            if hidden.dtype == torch.float16:
                hidden = hidden.clamp(-FLOAT16_BOUND, FLOAT16_BOUND)
        embeddings: Tensor = tower.proj2(tower.act(tower.proj1(tower.ln_post(hidden))))
        return embeddings

    def _attend(self, attention: Any, hidden: Tensor) -> Tensor:
        queries, keys, values = (
            projection(hidden).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        heard = F.scaled_dot_product_attention(queries, keys, values, scale=attention.scaling)
        out: Tensor = attention.out_proj(heard.transpose(1, 2).flatten(2))
        return out
