"""Reads pieces of users' turns into the caches, several conversations at once.

A piece is tokens and the clip that stands behind the audio tokens among them. The thinker reads all of it. The talker
reads the user's part: a projection of the thinker's embeddings where there is text, of its middle layer where there is
sound; and, before an answer, the answer's opening and its own, which names the voice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from engine.attention import Cursor
from engine.batch import set_rows
from engine.memory import TALKER_OPENING
from engine.speaker import Speaker
from engine.thinker import Thinker
from engine.turn.conversation import Piece

BLOCKS = (2, 4, 8)  # of the encoder, 100 frames each: sizes that a clip is padded to
MOST_ROWS = 8  # of one batch on CUDA: turns seldom end together, and each size is a graph of its own
GRANULE = 16  # tokens are padded to a multiple of it


class Size(NamedTuple):
    """What the rows of a batch are padded to."""

    blocks: int
    tokens: int


@dataclass
class Reading:
    """Rows that read, R of them, padded to T tokens and K blocks. The tensors keep their place in memory."""

    slots: Tensor  # [R] int64
    thinker: Cursor
    talker: Cursor
    log_mel: Tensor  # [R, 128, 100 K]
    audio_tokens: Tensor  # [R] int64, of the clip
    tokens: Tensor  # [R, T] int64
    last: Tensor  # [R] int64, the place of the last real token
    talker_reads: Tensor  # [R, T + 5] int64, places among the T tokens and, behind them, the talker's opening

    @property
    def rows(self) -> int:
        """R."""
        return len(self.slots)


class Reader:
    """The step `read`, and the batches that it works on."""

    def __init__(self, thinker: Thinker, speaker: Speaker, slots: int, audio_token: int, tap: int):
        """`tap`: how many of the thinker's layers make what the talker hears of sound."""
        self._thinker, self._speaker = thinker, speaker
        self._spare, self._audio_token, self._tap = slots, audio_token, tap
        self.device = thinker.decoder.device
        encoder = thinker.hear
        most = encoder.window // encoder.block
        self.sizes = [Size(k, tokens_beside(k * encoder.block_tokens)) for k in BLOCKS if k < most]
        self.sizes.append(Size(most, tokens_beside(most * encoder.block_tokens)))
        hidden_size = speaker.talker.hidden_size
        dtype = thinker.decoder.dtype
        self.hidden = torch.zeros(slots + 1, thinker.hidden_size, dtype=dtype, device=self.device)  # the thinker's last
        self.openings = torch.zeros(slots + 1, TALKER_OPENING, hidden_size, dtype=dtype, device=self.device)
        self._batches: dict[tuple[Size, int], Reading] = {}

    def size(self, piece: Piece) -> Size:
        """The least size that a piece fits into: it does not depend on company."""
        frames = 0 if piece.clip is None else piece.clip.shape[1]
        return next(
            size
            for size in self.sizes
            if frames <= size.blocks * self._thinker.hear.block and len(piece.tokens) <= size.tokens
        )

    def batch(self, size: Size, rows: int) -> Reading:
        """R rows of padding."""
        if (size, rows) not in self._batches:
            slots = torch.full((rows,), self._spare, device=self.device)

            def integers(*shape: int) -> Tensor:
                return torch.zeros(rows, *shape, dtype=torch.int64, device=self.device)

            self._batches[size, rows] = Reading(
                slots=slots,
                thinker=Cursor(slots, integers()),
                talker=Cursor(slots, integers()),
                log_mel=torch.zeros(rows, 128, size.blocks * self._thinker.hear.block, device=self.device),
                audio_tokens=integers(),
                tokens=integers(size.tokens),
                last=integers(),
                talker_reads=integers(size.tokens + TALKER_OPENING),
            )
        return self._batches[size, rows]

    def fill(self, batch: Reading, pieces: Sequence[Piece], places: Sequence[tuple[int, int, int]]) -> None:
        """Pieces and their places (slot, thinker's position, talker's), sorted by slot; the other rows are padding."""
        size = batch.tokens.shape[1]
        tokens = torch.zeros(batch.tokens.shape, dtype=torch.int64)
        reads = torch.zeros(batch.talker_reads.shape, dtype=torch.int64)
        clips = torch.zeros(batch.log_mel.shape)
        rows = []
        for row, (piece, place) in enumerate(zip(pieces, places, strict=True)):
            all_tokens, closing = piece.tokens, len(piece.closing)
            tokens[row, : len(all_tokens)] = torch.tensor(all_tokens)
            heard = [*range(closing, len(all_tokens)), *(range(size, size + TALKER_OPENING) if piece.opening else ())]
            reads[row, : len(heard)] = torch.tensor(heard)
            sounding = 0
            if piece.clip is not None:
                clips[row, :, : piece.clip.shape[1]] = piece.clip
                sounding = self._thinker.hear.tokens(piece.clip.shape[1])
            rows.append((*place, sounding, len(all_tokens) - 1))
        set_rows(
            rows, self._spare, (batch.slots, batch.thinker.starts, batch.talker.starts, batch.audio_tokens, batch.last)
        )
        for tensor, values in ((batch.tokens, tokens), (batch.talker_reads, reads), (batch.log_mel, clips)):
            tensor.copy_(values)
        slots, thinker, talker = (list(column) for column in zip(*places, strict=True))
        batch.thinker.place(slots, thinker)
        batch.talker.place(slots, talker)

    def read(self, batch: Reading) -> None:
        """The step. What is written behind a row's end is nobody's: the next to be read or said takes its place."""
        thinker, talker = self._thinker, self._speaker.talker
        heard = thinker.hear(batch.log_mel, batch.audio_tokens.clamp(min=1))  # [R, 13 K, H]
        is_sound = batch.tokens == self._audio_token
        place = (is_sound.cumsum(1) - 1).clamp(min=0, max=heard.shape[1] - 1)
        sound = heard.gather(1, place[..., None].expand(-1, -1, heard.shape[2]))
        embeddings = torch.where(is_sound[..., None], sound.to(self.hidden.dtype), thinker.embed(batch.tokens))
        last, tapped = thinker.decoder.forward_and_tap(embeddings, batch.thinker, self._tap)
        self.hidden[batch.slots] = last[torch.arange(batch.rows, device=self.device), batch.last]

        inputs = torch.where(is_sound[..., None], talker.project_hidden(tapped), talker.project_text(embeddings))
        inputs = torch.cat([inputs, self.openings[batch.slots]], dim=1)
        inputs = inputs.gather(1, batch.talker_reads[..., None].expand(-1, -1, inputs.shape[2]))
        talker.decoder.forward(inputs, batch.talker)


def tokens_beside(audio_tokens: int) -> int:
    """Tokens to pad to, where so many are of sound: what stands around a clip takes 12 more."""
    return -(-(audio_tokens + 12) // GRANULE) * GRANULE
