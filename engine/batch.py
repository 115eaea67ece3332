"""The rows of a tick: one a conversation, and padding up to a number for which there is a captured graph."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.attention import Cursor

CPU_LEAST_ROWS = 4  # below it, torch's CPU products take other kernels, whose sums round differently


@dataclass
class Batch:
    """Tensors that keep their place in memory, so that a captured graph finds them: R rows.

    The steps of a tick read and write these and the slots' own state, nothing else.
    """

    slots: Tensor  # [R] int64; padding has the spare slot
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

    @property
    def rows(self) -> int:
        """R."""
        return len(self.slots)


def rung(count: int, slots: int, device: torch.device) -> int:
    """Rows of a batch of `count` conversations: on CUDA a power of two, or all slots; on the CPU hardly more."""
    if device.type == "cpu":
        return max(count, CPU_LEAST_ROWS)
    return min(slots, 1 << (count - 1).bit_length())


def ladder(slots: int, device: torch.device) -> list[int]:
    """Every number of rows that a batch on CUDA may have."""
    return sorted({rung(count, slots, device) for count in range(1, slots + 1)})
