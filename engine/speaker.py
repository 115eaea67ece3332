"""The talker's part of a tick, alike in every dialect: codec frames, each conditioned by text and by the one before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.attention import Cursor
from engine.sampler import Sampler, draw
from engine.talker import Talker
from engine.thinker import Thinker


@dataclass
class Speaking:
    """Rows that speak, R of them. The tensors keep their place in memory, so that a captured graph finds them."""

    slots: Tensor  # [R] int64
    drawn: Tensor  # [R] int64, numbers that a conversation has drawn so far
    cursor: Cursor  # the talker's
    spoken: Tensor  # [R, H'], the talker's last
    first: Tensor  # [R] int64, the code of the first codebook of this frame
    codes: Tensor  # [R, 16] int64, this frame
    sampled: bool = False  # whether any row draws; else all are greedy

    @classmethod
    def of_padding(cls, rows: int, spare: int, talker: Talker) -> Speaking:
        """R rows of padding, all in the spare slot."""
        decoder = talker.decoder
        slots = torch.full((rows,), spare, device=decoder.device)

        def integers(*shape: int) -> Tensor:
            return torch.zeros(rows, *shape, dtype=torch.int64, device=decoder.device)

        return cls(
            slots=slots,
            drawn=integers(),
            cursor=Cursor(slots, integers()),
            spoken=torch.zeros(rows, talker.hidden_size, dtype=decoder.dtype, device=decoder.device),
            first=integers(),
            codes=integers(talker.codebooks),
        )


class Speaker:
    """The talker and, by slot, what its next frame hears: the frame before, and a condition."""

    def __init__(self, model: Any, slots: int, rows: int, positions: int, ends: bool):
        """`ends`: whether it may say that its speech has ended; else it speaks for ever."""
        self.talker = Talker(model.talker, slots, rows, positions)
        decoder = self.talker.decoder
        self.sampler = Sampler(slots, self.talker.codebook_size + 1, decoder.device)
        self._ends = ends
        self._config = model.config
        begin = torch.tensor(model.config.talker_config.codec_bos_id, device=decoder.device)
        self._begin_frame = self.talker.embed(begin)
        self._frames = self._begin_frame.repeat(slots + 1, 1)  # [slots + 1, H']
        self.conditions = torch.zeros_like(self._frames)  # [slots + 1, H']

    def begin(self, slot: int) -> None:
        """Before the first frame of a speech: nothing of an earlier one is heard."""
        self._frames[slot] = self._begin_frame
        self.sampler.forget_spoken(slot)

    def wipe(self, slot: int) -> None:
        """Forgets a slot."""
        self.talker.decoder.wipe(slot)
        self._frames[slot] = self._begin_frame
        self.conditions[slot] = 0
        self.sampler.wipe(slot)

    def speak(self, rows: Speaking) -> None:
        """The talker's step: the code of the first codebook."""
        inputs = self._frames[rows.slots] + self.conditions[rows.slots]
        hidden = self.talker.decoder.forward(inputs[:, None], rows.cursor)[:, -1]
        rows.spoken.copy_(hidden)
        logits = self.sampler.penalise(self.talker.logits(hidden, self._ends), rows.slots)
        if rows.sampled:
            (number,) = self.sampler.numbers(rows.slots, rows.drawn, 1).unbind(1)
            rows.drawn += 1
            first = draw(logits, self.sampler.code(rows.slots), number)
        else:
            first = logits.argmax(dim=-1)
        rows.first.copy_(first)
        self.sampler.note_spoken(rows.slots, rows.first)

    def complete(self, rows: Speaking) -> None:
        """The code predictor's step: the other codebooks. A frame behind the end of speech is nobody's."""
        first = rows.first.clamp(max=self.talker.codebook_size - 1) if self._ends else rows.first
        if rows.sampled:
            others = self.talker.codebooks - 1
            numbers = self.sampler.numbers(rows.slots, rows.drawn, others)
            rows.drawn += others
            warp = self.sampler.residual(rows.slots)
            codes, heard = self.talker.complete(
                rows.spoken, first, lambda logits, codebook: draw(logits, warp, numbers[:, codebook - 1])
            )
        else:
            codes, heard = self.talker.complete(rows.spoken, first, lambda logits, _: logits.argmax(dim=-1))
        rows.codes.copy_(codes)
        if self._ends:
            rows.codes[:, 0] = rows.first  # the end of speech shows
        self._frames[rows.slots] = heard

    def opening(self, thinker: Thinker, voice: str) -> Tensor:
        """What the talker hears before the first frame [1, 5, H']: transformers' own opening, it names the voice."""
        config, talker = self._config, self._config.talker_config
        device = self._frames.device
        codec = [talker.codec_nothink_id, talker.codec_think_bos_id, talker.codec_think_eos_id]
        codes = torch.tensor([[*codec, talker.speaker_id[voice], talker.codec_pad_id]], device=device)
        text = torch.tensor([[config.tts_pad_token_id] * 4 + [config.tts_bos_token_id]], device=device)
        return self.talker.project_text(thinker.embed(text)) + self.talker.embed(codes)
