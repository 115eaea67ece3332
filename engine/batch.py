"""The rows of a tick: one a conversation, and padding up to a number for which there is a captured graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from config.settings import Settings
from engine.attention import Cursor
from engine.talker import Talker
from engine.thinker import Thinker

CPU_LEAST_ROWS = 4  # below it, torch's CPU products take other kernels, whose sums round differently


class Place(NamedTuple):
    """Where a conversation stands: its slot, its next positions, and how many numbers it has drawn."""

    slot: int
    thinker: int
    talker: int
    drawn: int


@dataclass
class Batch:
    """Tensors that keep their place in memory, so that a captured graph finds them: R rows.

    The steps of a tick read and write these and the slots' own state, nothing else.
    """

    spare: int  # the slot that padding uses
    slots: Tensor  # [R] int64
    drawn: Tensor  # [R] int64, numbers that a conversation has drawn so far
    thinker: Cursor
    talker: Cursor
    log_mel: Tensor  # [R, 128, T]
    heard: Tensor  # [R, audio tokens, H], the encoder's
    hidden: Tensor  # [R, H], the thinker's last
    condition: Tensor  # [R, H'], of the frames that follow
    spoken: Tensor  # [R, H'], the talker's last
    token: Tensor  # [R] int64, the text token of this step
    first: Tensor  # [R] int64, the code of the first codebook of this step
    codes: Tensor  # [R, 16] int64, the frame of this step
    said: Tensor  # [R, tokens + 16 * frames] int64, the whole tick's
    sampled: bool = False  # whether any row draws; else all are greedy

    @classmethod
    def of_padding(cls, rows: int, spare: int, thinker: Thinker, talker: Talker, settings: Settings) -> Batch:
        """R rows of padding, all in the spare slot."""
        device, dtype = thinker.decoder.device, thinker.decoder.dtype
        frames, tokens = settings.audio.codec_frames, settings.engine.text_tokens_per_tick

        def integers(*shape: int) -> Tensor:
            return torch.zeros(rows, *shape, dtype=torch.int64, device=device)

        def numbers(*shape: int) -> Tensor:
            return torch.zeros(rows, *shape, dtype=dtype, device=device)

        slots = torch.full((rows,), spare, device=device)
        return cls(
            spare=spare,
            slots=slots,
            drawn=integers(),
            thinker=Cursor(slots, integers()),
            talker=Cursor(slots, integers()),
            log_mel=numbers(128, settings.audio.mel_frames),
            heard=numbers(frames, thinker.hidden_size),
            hidden=numbers(thinker.hidden_size),
            condition=numbers(talker.hidden_size),
            spoken=numbers(talker.hidden_size),
            token=integers(),
            first=integers(),
            codes=integers(talker.codebooks),
            said=integers(tokens + frames * talker.codebooks),
        )

    @property
    def rows(self) -> int:
        """R."""
        return len(self.slots)

    def fill(self, places: Sequence[Place], log_mel: Tensor) -> None:
        """The rows' conversations, sorted by slot, and what each heard [B, 128, T]; the other rows are padding."""
        count = len(places)
        padding = [Place(self.spare, 0, 0, 0)] * (self.rows - count)
        columns = torch.tensor([*places, *padding]).T.to(self.slots.device)
        for tensor, values in zip(
            (self.slots, self.thinker.starts, self.talker.starts, self.drawn), columns, strict=True
        ):
            tensor.copy_(values)
        slots = [place.slot for place in places]
        self.thinker.place(slots, [place.thinker for place in places])
        self.talker.place(slots, [place.talker for place in places])
        self.log_mel[:count].copy_(log_mel)
        self.log_mel[count:] = 0  # padding hears nobody


def rung(count: int, slots: int, device: torch.device) -> int:
    """Rows of a batch of `count` conversations: on CUDA a power of two, or all slots; on the CPU hardly more."""
    if device.type == "cpu":
        return max(count, CPU_LEAST_ROWS)
    return min(slots, 1 << (count - 1).bit_length())


def ladder(slots: int, device: torch.device) -> list[int]:
    """Every number of rows that a batch on CUDA may have."""
    return sorted({rung(count, slots, device) for count in range(1, slots + 1)})
