"""The thinker: hears log-mel, reads and writes text tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from engine.slot_decoder import SlotDecoder


class Thinker:
    """transformers' thinker, for many conversations at once."""

    def __init__(self, thinker: Any, slots: int, positions: int):
        self._thinker = thinker
        self.decoder = SlotDecoder(thinker.model, slots, positions)

    def hear(self, log_mel: Tensor) -> Tensor:
        """[B, 128, T] -> embeddings of audio tokens [B, T / 8, H]; each row is a window of its own to the encoder."""
        batch, _, frames = log_mel.shape
        tower = self._thinker.audio_tower
        weight = tower.conv2d1.weight
        features = log_mel.to(weight.device, weight.dtype).transpose(0, 1).flatten(1)  # [128, B * T]
        lengths = torch.full((batch,), frames, device=weight.device)
        heard = tower(features, feature_lens=lengths).last_hidden_state  # [B * tokens, H]
        return heard.unflatten(0, (batch, -1)).to(self.decoder.device)

    def embed(self, tokens: Tensor) -> Tensor:
        """[B, T] -> [B, T, H]."""
        return self._thinker.model.embed_tokens(tokens.to(self.decoder.device))

    def logits(self, hidden: Tensor) -> Tensor:
        """[B, H] -> [B, vocabulary], float32."""
        return self._thinker.lm_head(hidden).float()
