"""The thinker: hears log-mel, reads and writes text tokens."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from engine.audio_encoder import AudioEncoder
from engine.slot_decoder import SlotDecoder


class Thinker:
    """transformers' thinker, for many conversations at once."""

    def __init__(self, thinker: Any, slots: int, positions: int):
        self._thinker = thinker
        self.hidden_size: int = thinker.config.text_config.hidden_size
        self.hear = AudioEncoder(thinker.audio_tower)
        self.decoder = SlotDecoder(thinker.model, slots, positions)

    def embed(self, tokens: Tensor) -> Tensor:
        """[B, T] -> [B, T, H]."""
        embeddings: Tensor = self._thinker.model.embed_tokens(tokens)
        return embeddings

    def logits(self, hidden: Tensor) -> Tensor:
        """[B, H] -> [B, vocabulary], float32."""
        logits: Tensor = self._thinker.lm_head(hidden)
        return logits.float()
