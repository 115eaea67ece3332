"""The rows of a tick: one a conversation, and padding up to a number for which there is a captured graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from config.settings import Settings
from engine.attention import Cursor
from engine.speaker import Speaking
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
    speaking: Speaking
    thinker: Cursor
    log_mel: Tensor  # [R, 128, T]
    heard: Tensor  # [R, audio tokens, H], the encoder's
    hidden: Tensor  # [R, H], the thinker's last
    token: Tensor  # [R] int64, the text token of this step
    said: Tensor  # [R, tokens + 16 * frames] int64, the whole tick's

    @classmethod
    def of_padding(cls, rows: int, spare: int, thinker: Thinker, talker: Talker, settings: Settings) -> Batch:
        """R rows of padding, all in the spare slot."""
        device, dtype = thinker.decoder.device, thinker.decoder.dtype
        frames, tokens = settings.audio.codec_frames, settings.engine.text_tokens_per_tick
        speaking = Speaking.of_padding(rows, spare, talker)

        def numbers(*shape: int) -> Tensor:
            return torch.zeros(rows, *shape, dtype=dtype, device=device)

        return cls(
            spare=spare,
            speaking=speaking,
            thinker=Cursor(speaking.slots, torch.zeros_like(speaking.slots)),
            log_mel=numbers(128, settings.audio.mel_frames),
            heard=numbers(frames, thinker.hidden_size),
            hidden=numbers(thinker.hidden_size),
            token=torch.zeros_like(speaking.slots),
            said=torch.zeros(rows, tokens + frames * talker.codebooks, dtype=torch.int64, device=device),
        )

    @property
    def rows(self) -> int:
        """R."""
        return len(self.slots)

    @property
    def slots(self) -> Tensor:
        """Of the rows, [R]."""
        return self.speaking.slots

    def fill(self, places: Sequence[Place], log_mel: Tensor) -> None:
        """The rows' conversations, sorted by slot, and what each heard [B, 128, T]; the other rows are padding."""
        count = len(places)
        speaking = self.speaking
        set_rows([*places], self.spare, (self.slots, self.thinker.starts, speaking.cursor.starts, speaking.drawn))
        slots = [place.slot for place in places]
        self.thinker.place(slots, [place.thinker for place in places])
        speaking.cursor.place(slots, [place.talker for place in places])
        self.log_mel[:count].copy_(log_mel)
        self.log_mel[count:] = 0  # padding hears nobody


def set_rows(values: Sequence[Sequence[int]], spare: int, tensors: Sequence[Tensor]) -> None:
    """Copies columns of numbers, the slot first, into tensors [R]; rows behind the values are padding: slot `spare`."""
    padding = [(spare, *[0] * (len(tensors) - 1))] * (len(tensors[0]) - len(values))
    columns = torch.tensor([*values, *padding]).T.to(tensors[0].device)
    for tensor, column in zip(tensors, columns, strict=True):
        tensor.copy_(column)


def rung(count: int, slots: int, device: torch.device) -> int:
    """Rows of a batch of `count` conversations: on CUDA a power of two, or all slots; on the CPU hardly more."""
    if device.type == "cpu":
        return max(count, CPU_LEAST_ROWS)
    return min(slots, 1 << (count - 1).bit_length())


def ladder(slots: int, device: torch.device) -> list[int]:
    """Every number of rows that a batch on CUDA may have."""
    return sorted({rung(count, slots, device) for count in range(1, slots + 1)})
