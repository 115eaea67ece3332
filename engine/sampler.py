"""Draws tokens and codes for all rows of a batch at once.

Every draw of a conversation uses one number, which follows from the conversation's seed and from how many it has drawn
before, and from nothing else: the same seed draws the same in any company.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from engine.options import Options

RESIDUAL_TOP_K = 50  # what transformers' talker gives to its code predictor
RESIDUAL_TOP_P = 0.8


class Warp(NamedTuple):
    """How the rows of a batch draw one kind of token, each [B]; temperature 0 is greedy."""

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor


class Sampler:
    """The choices of every slot's conversation, and which codes of the first codebook it has spoken."""

    def __init__(self, slots: int, codes: int, device: torch.device):
        """`codes` of the first codebook, the end of speech among them."""
        self._choices = torch.zeros(slots + 1, 6, device=device)
        self._seeds = torch.zeros(slots + 1, dtype=torch.int64, device=device)
        self._spoken = torch.zeros(slots + 1, codes, dtype=torch.bool, device=device)
        self._true = torch.ones((), dtype=torch.bool, device=device)
        self.wipe(slots)

    def place(self, slot: int, options: Options) -> None:
        """Begins a slot with a conversation's choices."""
        chosen = options.sampling
        row = [
            chosen.text_temperature,
            chosen.temperature,
            float(chosen.temperature > 0),  # the other codebooks' temperature
            float(chosen.top_k),
            chosen.top_p,
            chosen.repetition_penalty,
        ]
        self._choices[slot] = torch.tensor(row, device=self._choices.device)
        self._seeds[slot] = options.seed
        self._spoken[slot] = False

    def forget_spoken(self, slot: int) -> None:
        """A new speech begins: nothing of it has been spoken."""
        self._spoken[slot] = False

    def wipe(self, slot: int) -> None:
        """Forgets a slot; what is left of it is greedy."""
        self._choices[slot] = torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0, 1.0], device=self._choices.device)
        self._seeds[slot] = 0
        self._spoken[slot] = False

    def text(self, slots: Tensor) -> Warp:
        """How rows draw text tokens."""
        text, _, _, top_k, top_p, _ = self._choices[slots].unbind(1)
        return Warp(text, top_k, top_p)

    def code(self, slots: Tensor) -> Warp:
        """How rows draw codes of the first codebook."""
        _, code, _, top_k, top_p, _ = self._choices[slots].unbind(1)
        return Warp(code, top_k, top_p)

    def residual(self, slots: Tensor) -> Warp:
        """How rows draw codes of the other codebooks."""
        temperature = self._choices[slots, 2]
        return Warp(
            temperature,
            torch.full_like(temperature, RESIDUAL_TOP_K),
            torch.full_like(temperature, RESIDUAL_TOP_P),
        )

    def penalise(self, logits: Tensor, slots: Tensor) -> Tensor:
        """Logits of the first codebook [B, V], those of codes already spoken made less likely."""
        penalty = self._choices[slots, 5, None]
        spoken = self._spoken[slots, : logits.shape[1]]
        return torch.where(spoken, torch.where(logits < 0, logits * penalty, logits / penalty), logits)

    def note_spoken(self, slots: Tensor, codes: Tensor) -> None:
        """Remembers codes of the first codebook [B]."""
        self._spoken.index_put_((slots, codes), self._true)

    def numbers(self, slots: Tensor, drawn: Tensor, count: int) -> Tensor:
        """The next `count` numbers of each row, evenly over [0, 1): [B, count]; drawn [B] is how many went before.

        SplitMix64 (Steele, Lea, Flood 2014: Fast splittable pseudorandom number generators), on int64 that wraps.
        """
        index = drawn[:, None] + torch.arange(1, count + 1, device=drawn.device)
        mixed = _mix(_mix(self._seeds[slots])[:, None] + index * -0x61C8864680B583EB)
        return _shift(mixed, 40).float() / 2**24


def draw(logits: Tensor, warp: Warp, numbers: Tensor) -> Tensor:
    """logits [B, V] float32, numbers [B] in [0, 1) -> tokens [B]: top-k, then top-p, as transformers' warpers."""
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    greedy = warp.temperature == 0
    below_likeliest = ordered - ordered[:, :1]  # so that no temperature, however low, overflows
    scores = below_likeliest / torch.where(greedy, 1.0, warp.temperature)[:, None]
    rank = torch.arange(logits.shape[1], device=logits.device)
    among_top_k = (rank < warp.top_k[:, None]) | (warp.top_k[:, None] == 0)
    probabilities = scores.masked_fill(~among_top_k, -torch.inf).softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    among_top_p = (before <= warp.top_p[:, None]) | (warp.top_p[:, None] == 1)
    probabilities = probabilities * among_top_p
    heights = probabilities.cumsum(dim=-1)
    drawn = (heights <= numbers[:, None] * heights[:, -1:]).sum(dim=-1, keepdim=True)
    last = (probabilities > 0).sum(dim=-1, keepdim=True) - 1  # should rounding have the number reach the top
    tokens = order.gather(1, torch.minimum(drawn, last))[:, 0]
    return torch.where(greedy, logits.argmax(dim=-1), tokens)


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift(z, 30)) * -0x40A7B892E31B1A47
    z = (z ^ _shift(z, 27)) * -0x6B2FB644ECCEEE15
    return z ^ _shift(z, 31)


def _shift(z: Tensor, bits: int) -> Tensor:
    """A logical shift to the right; torch's repeats the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
