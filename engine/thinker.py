"""The thinker: audio and text tokens -> hidden states and logits of text tokens."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from engine.audio_encoder import AudioEncoder
from engine.decoder import Decoder
from engine.kv_cache import KVCache


class Thinker:
    """`Qwen3OmniMoeThinkerForConditionalGeneration` (transformers 5.20.2) for audio and text, over slots."""

    def __init__(self, thinker: Any, cache: KVCache):
        self._thinker = thinker
        self.hidden_size: int = thinker.config.text_config.hidden_size
        self.audio_encoder = AudioEncoder(thinker.audio_tower)
        self.decoder = Decoder(thinker.model, cache)

    def embed(self, tokens: Tensor) -> Tensor:
        """Embed tokens [B, T]: [B, T, H]."""
        embeddings: Tensor = self._thinker.model.embed_tokens(tokens)
        return embeddings

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits [B, vocabulary] in float32 for hidden states [B, H]."""
        logits: Tensor = self._thinker.lm_head(hidden)
        return logits.float()
