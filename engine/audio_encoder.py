"""The thinker's ears: transformers' audio encoder, all of a batch at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

FLOAT16_BOUND = torch.finfo(torch.float16).max - 1000  # transformers' own, after every layer


class AudioEncoder:
    """Each row is a window of its own: its blocks of 100 frames are convolved apart, and attend to each other."""

    def __init__(self, tower: Any):
        self._tower = tower
        self.block: int = tower.n_window * 2  # frames
        self.window: int = tower.n_window_infer  # frames
        self.block_tokens = self.tokens(self.block)

    def tokens(self, frames: int) -> int:
        """Audio tokens of a clip: three convolutions halve each block."""
        blocks, rest = divmod(frames, self.block)
        whole = self.tokens_of_block(self.block) if blocks else 0
        return blocks * whole + (self.tokens_of_block(rest) if rest else 0)

    @staticmethod
    def tokens_of_block(frames: int) -> int:
        """Audio tokens of one block or less."""
        for _ in range(3):
            frames = (frames - 1) // 2 + 1
        return frames

    def __call__(self, log_mel: Tensor, tokens: Tensor | None = None) -> Tensor:
        """[B, 128, T] -> embeddings of audio tokens [B, tokens, H].

        Without `tokens`, T is a block at most. With them, T is a multiple of it, up to a window, and `tokens` [B] says
        how many of a row's tokens are not padding.
        """
        tower = self._tower
        maps = log_mel[:, None].to(tower.conv2d1.weight.dtype)
        if tokens is not None:  # [B * blocks, 1, 128, 100]
            maps = maps.unflatten(3, (-1, self.block)).permute(0, 3, 1, 2, 4).flatten(0, 1)
        for convolution in (tower.conv2d1, tower.conv2d2, tower.conv2d3):
            maps = F.gelu(convolution(maps))
        hidden = tower.conv_out(maps.permute(0, 3, 1, 2).flatten(2))  # [B * blocks, tokens, d]
        hidden = hidden + tower.positional_embedding.positional_embedding[: hidden.shape[1]].to(hidden.dtype)
        mask = None
        if tokens is not None:
            hidden = hidden.unflatten(0, (len(log_mel), -1)).flatten(1, 2)
            mask = (torch.arange(hidden.shape[1], device=hidden.device) < tokens[:, None])[:, None, None]
        for layer in tower.layers:
            hidden = hidden + self._attend(layer.self_attn, layer.self_attn_layer_norm(hidden), mask)
            hidden = hidden + layer.fc2(layer.activation_fn(layer.fc1(layer.final_layer_norm(hidden))))
            if hidden.dtype == torch.float16:
                hidden = hidden.clamp(-FLOAT16_BOUND, FLOAT16_BOUND)
        embeddings: Tensor = tower.proj2(tower.act(tower.proj1(tower.ln_post(hidden))))
        return embeddings

    def _attend(self, attention: Any, hidden: Tensor, mask: Tensor | None) -> Tensor:
        queries, keys, values = (
            projection(hidden).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=attention.scaling)
        out: Tensor = attention.out_proj(attended.transpose(1, 2).flatten(2))
        return out
