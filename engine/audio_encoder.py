"""The thinker's audio encoder: transformers' modules, run for all rows of a batch at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

MAX_FLOAT16 = torch.finfo(torch.float16).max - 1000  # transformers clamps to it after every layer in float16


class AudioEncoder:
    """Encoder of windows, one a row: blocks of 100 frames are convolved separately and attend to each other."""

    def __init__(self, tower: Any):
        self._tower = tower
        self.block: int = tower.n_window * 2  # frames
        self.window: int = tower.n_window_infer  # frames
        self.block_tokens = self.tokens(self.block)

    def tokens(self, frames: int) -> int:
        """Return the number of audio tokens of a clip: three convolutions halve each block."""
        blocks, rest = divmod(frames, self.block)
        full_blocks = self.tokens_of_block(self.block) if blocks else 0
        return blocks * full_blocks + (self.tokens_of_block(rest) if rest else 0)

    @staticmethod
    def tokens_of_block(frames: int) -> int:
        """Return the number of audio tokens of `frames`, which are at most one block."""
        for _ in range(3):
            frames = (frames - 1) // 2 + 1
        return frames

    def __call__(self, log_mel: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Encode log-mel [B, 128, T] to embeddings of audio tokens [B, tokens, H].

        Without `tokens`, T is at most one block. With `tokens`, T is a multiple of a block, at most a window, and
        `tokens` [B] is the number of each row's tokens that are not padding.
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
                hidden = hidden.clamp(-MAX_FLOAT16, MAX_FLOAT16)
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
