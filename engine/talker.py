"""The talker: text conditions and the previous codec frame -> hidden states and codes of the first codebook."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from engine.decoder import Decoder
from engine.kv_cache import KVCache


class Talker:
    """`Qwen3OmniMoeTalkerForConditionalGeneration` (transformers 5.20.2) without its code predictor, over slots."""

    def __init__(self, talker: Any, cache: KVCache):
        self._talker = talker
        self.hidden_size: int = talker.config.text_config.hidden_size
        self.codebooks: int = talker.config.num_code_groups
        self.codebook_size: int = talker.code_predictor.vocab_size
        self._end: int = talker.config.codec_eos_token_id
        self.decoder = Decoder(talker.model, cache)

    def embed(self, codes: Tensor) -> Tensor:
        """Embed codes of the first codebook and special tokens of the codec: [...] -> [..., H']."""
        embeddings: Tensor = self._talker.model.codec_embedding(codes)
        return embeddings

    def project_text(self, hidden: Tensor) -> Tensor:
        """Project the thinker's text embeddings or hidden states [..., H] to inputs of the talker [..., H']."""
        projected: Tensor = self._talker.text_projection(hidden)
        return projected

    def project_audio(self, hidden: Tensor) -> Tensor:
        """Project the thinker's middle layer at audio tokens [..., H] to inputs of the talker [..., H']."""
        projected: Tensor = self._talker.hidden_projection(hidden)
        return projected

    def logits(self, hidden: Tensor, ends: bool) -> Tensor:
        """Return logits of the first codebook [B, codebook size] in float32 for hidden states [B, H'].

        `ends` adds a column for the end of speech. transformers suppresses the other special tokens, which code2wav
        cannot decode.
        """
        logits: Tensor = self._talker.codec_head(hidden)
        codes = logits[:, : self.codebook_size]
        if ends:
            codes = torch.cat([codes, logits[:, self._end : self._end + 1]], dim=1)
        return codes.float()
