"""The talker: turns conditions into codec frames of 16 codebooks, each frame hearing the one before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from engine.frame_decoder import FrameDecoder
from engine.slot_decoder import SlotDecoder

Draw = Callable[[Tensor], Tensor]  # logits [B, vocabulary] -> codes [B]


class Talker:
    """transformers' talker with its code predictor, for many conversations at once."""

    def __init__(self, talker: Any, slots: int, positions: int):
        self._talker = talker
        self._predictor = talker.code_predictor
        self.codebooks = talker.config.num_code_groups
        self.codebook_size = self._predictor.vocab_size
        self.decoder = SlotDecoder(talker.model, slots, positions)
        self._frame_decoder = FrameDecoder(self._predictor.model, slots, positions=self.codebooks)

    def project_text(self, hidden: Tensor) -> Tensor:
        """The thinker's [..., H] as conditions of the talker [..., H']."""
        return self._talker.text_projection(hidden.to(self.decoder.device))

    def embed(self, codes: Tensor) -> Tensor:
        """Codes of the first codebook and the codec's special tokens [...] -> [..., H']."""
        return self._talker.model.codec_embedding(codes.to(self.decoder.device))

    def logits(self, hidden: Tensor) -> Tensor:
        """[B, H'] -> logits of the first codebook [B, codebook size], float32.

        Only codes that code2wav can decode: the special tokens behind them, the end of speech too, have no place in
        a stream that never ends.
        """
        return self._talker.codec_head(hidden)[:, : self.codebook_size].float()

    def speak(self, hidden: Tensor, first: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
        """Completes a frame: last hidden states [B, H'] and codes of the first codebook [B] -> the frame's codes
        [B, 16], and the sum of their embeddings [B, H'], which the next frame hears.
        """
        embedding = self.embed(first)
        total, codes = embedding, [first]
        inputs = torch.stack([hidden, embedding], dim=1)  # [B, 2, H']
        position = 0
        for head, table in zip(self._predictor.lm_head, self._predictor.model.codec_embedding, strict=True):
            predicted = self._frame_decoder.forward(inputs, position)
            position += inputs.shape[1]
            code = draw(head(predicted).float())
            embedding = table(code)
            total = total + embedding
            codes.append(code)
            inputs = embedding[:, None]
        return torch.stack(codes, dim=1), total
