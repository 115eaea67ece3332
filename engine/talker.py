"""The talker: turns conditions into codec frames of 16 codebooks, each frame hearing the one before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from engine.frame_decoder import FrameDecoder
from engine.slot_decoder import SlotDecoder

Draw = Callable[[Tensor, int], Tensor]  # logits [B, vocabulary], codebook -> codes [B]


class Talker:
    """transformers' talker with its code predictor, for many conversations at once."""

    def __init__(self, talker: Any, slots: int, rows: int, positions: int):
        self._talker = talker
        self._predictor = talker.code_predictor
        self.hidden_size: int = talker.config.text_config.hidden_size
        self.codebooks: int = talker.config.num_code_groups
        self.codebook_size: int = self._predictor.vocab_size
        self._end: int = talker.config.codec_eos_token_id
        self.decoder = SlotDecoder(talker.model, slots, positions)
        self._frame_decoder = FrameDecoder(self._predictor.model, rows, positions=self.codebooks)

    def project_text(self, hidden: Tensor) -> Tensor:
        """The thinker's [..., H] as conditions of the talker [..., H']."""
        projected: Tensor = self._talker.text_projection(hidden)
        return projected

    def embed(self, codes: Tensor) -> Tensor:
        """Codes of the first codebook and the codec's special tokens [...] -> [..., H']."""
        embeddings: Tensor = self._talker.model.codec_embedding(codes)
        return embeddings

    def project_hidden(self, hidden: Tensor) -> Tensor:
        """The thinker's middle layer where it heard audio [..., H] as inputs of the talker [..., H']."""
        projected: Tensor = self._talker.hidden_projection(hidden)
        return projected

    def logits(self, hidden: Tensor, ends: bool) -> Tensor:
        """[B, H'] -> logits of the first codebook [B, codebook size], float32; with `ends`, one more for the end.

        Only codes that code2wav can decode, and the end of speech where speech may end: transformers suppresses the
        other special tokens too.
        """
        logits: Tensor = self._talker.codec_head(hidden)
        codes = logits[:, : self.codebook_size]
        if ends:
            codes = torch.cat([codes, logits[:, self._end : self._end + 1]], dim=1)
        return codes.float()

    def complete(self, hidden: Tensor, first: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
        """Completes a frame: last hidden states [B, H'] and codes of the first codebook [B] -> the frame's codes
        [B, 16], and the sum of their embeddings [B, H'], which the next frame hears.
        """
        embedding = self.embed(first)
        total, codes = embedding, [first]
        inputs = torch.stack([hidden, embedding], dim=1)  # [B, 2, H']
        position = 0
        predictor = self._predictor
        for head, table in zip(predictor.lm_head, predictor.model.codec_embedding, strict=True):
            predicted = self._frame_decoder.forward(inputs, position)
            position += inputs.shape[1]
            code = draw(head(predicted).float(), len(codes))
            embedding = table(code)
            total = total + embedding
            codes.append(code)
            inputs = embedding[:, None]
        return torch.stack(codes, dim=1), total
