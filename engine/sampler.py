"""Samples tokens and codes for all rows of a batch at once.

Every sample of a conversation uses one uniform number, which follows from the conversation's seed and from how many
came before it (the offset), and from nothing else: the same seed samples the same in any company.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from config.options import Options

RESIDUAL_TOP_K = 50  # what transformers' talker gives to its code predictor
RESIDUAL_TOP_P = 0.8

# Among how many of the likeliest a batch samples: to put a whole vocabulary in order takes longer than to compute it.
GREEDY, FEW, ALL = 0, 64, 1 << 30


class SamplingParams(NamedTuple):
    """How the rows of a batch sample one kind of token, each [B]; temperature 0 is greedy."""

    temperature: Tensor
    top_k: Tensor  # 0 is all
    top_p: Tensor


class SamplingState:
    """Every slot's sampling parameters and seed, and which codes of the first codebook its speech has had."""

    def __init__(self, slots: int, codes: int, device: torch.device):
        """For so many slots and padding's; `codes` of the first codebook, the end of speech among them."""
        self._text = torch.zeros(slots + 1, 3, device=device)  # temperature, top-k, top-p
        self._codes = torch.zeros(slots + 1, 3, device=device)
        self._penalty = torch.ones(slots + 1, device=device)
        self._seeds = torch.zeros(slots + 1, dtype=torch.int64, device=device)
        self._seen = torch.zeros(slots + 1, codes, dtype=torch.bool, device=device)
        self._true = torch.ones((), dtype=torch.bool, device=device)
        for slot in range(slots + 1):
            self.reset(slot)

    def begin(self, slot: int, options: Options) -> None:
        """Sets a slot to a conversation's options."""
        sampling, device = options.sampling, self._seeds.device
        text = [sampling.text_temperature, float(sampling.text_top_k), sampling.text_top_p]
        codes = [sampling.temperature, float(sampling.top_k), sampling.top_p]
        self._text[slot] = torch.tensor(text, device=device)
        self._codes[slot] = torch.tensor(codes, device=device)
        self._penalty[slot] = sampling.repetition_penalty
        self._seeds[slot] = options.seed
        self._seen[slot] = False

    def begin_speech(self, slot: int) -> None:
        """A new speech has had no code yet."""
        self._seen[slot] = False

    def reset(self, slot: int) -> None:
        """A slot without a conversation is greedy."""
        self._text[slot] = self._codes[slot] = torch.tensor([0.0, 0.0, 1.0], device=self._seeds.device)
        self._penalty[slot] = 1.0
        self._seeds[slot] = 0
        self._seen[slot] = False

    def text(self, slots: Tensor) -> SamplingParams:
        """Of text tokens."""
        return SamplingParams(*self._text[slots].unbind(1))

    def first_code(self, slots: Tensor) -> SamplingParams:
        """Of codes of the first codebook."""
        return SamplingParams(*self._codes[slots].unbind(1))

    def residual_temperature(self, slots: Tensor) -> Tensor:
        """Of codes of the other codebooks [B]: 1, or 0 where the first is greedy."""
        return (self._codes[slots, 0] > 0).float()

    def penalise(self, logits: Tensor, slots: Tensor) -> Tensor:
        """Logits of the first codebook [B, V], those of codes that the speech has had made less likely."""
        penalty = self._penalty[slots, None]
        seen = self._seen[slots, : logits.shape[1]]
        return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)

    def note_first_codes(self, slots: Tensor, codes: Tensor) -> None:
        """Remembers codes of the first codebook [B]."""
        self._seen.index_put_((slots, codes), self._true)

    def uniforms(self, slots: Tensor, offsets: Tensor, count: int) -> Tensor:
        """`count` numbers of each row, uniform over [0, 1), from its offset [B] on: [B, count].

        SplitMix64 (Steele, Lea, Flood 2014: Fast splittable pseudorandom number generators), on int64 that wraps.
        """
        index = offsets[:, None] + torch.arange(1, count + 1, device=offsets.device)
        mixed = _mix(_mix(self._seeds[slots])[:, None] + index * -0x61C8864680B583EB)
        return _shift(mixed, 40).float() / 2**24


def candidates(samples: bool, top_k: int) -> int:
    """GREEDY, FEW or ALL, for a conversation's top-k."""
    if not samples:
        return GREEDY
    return FEW if 0 < top_k <= FEW else ALL


def residual_params(temperature: Tensor) -> SamplingParams:
    """Of codes of the other codebooks, for temperatures [B]."""
    return SamplingParams(
        temperature,
        torch.full_like(temperature, RESIDUAL_TOP_K),
        torch.full_like(temperature, RESIDUAL_TOP_P),
    )


def sample(logits: Tensor, params: SamplingParams, uniforms: Tensor, most: int = ALL) -> Tensor:
    """logits [B, V] float32, uniforms [B] in [0, 1) -> tokens [B]: top-k, then top-p, as transformers' warpers.

    `most`: unless it is ALL, no row samples among more.
    """
    if most < logits.shape[1]:
        ordered, order = logits.topk(most)
    else:
        ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    greedy = params.temperature == 0
    below_likeliest = ordered - ordered[:, :1]  # so that no temperature, however low, overflows
    scores = below_likeliest / torch.where(greedy, 1.0, params.temperature)[:, None]
    kth = ordered.gather(1, (params.top_k[:, None].long() - 1).clamp(0, ordered.shape[1] - 1))
    among_top_k = (ordered >= kth) | (params.top_k[:, None] == 0)  # with all that are as likely as the last
    probabilities = scores.masked_fill(~among_top_k, -torch.inf).softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    among_top_p = (before < params.top_p[:, None]) | (params.top_p[:, None] == 1)
    probabilities = probabilities * among_top_p
    cumulative = probabilities.cumsum(dim=-1)
    place = (cumulative <= uniforms[:, None] * cumulative[:, -1:]).sum(dim=-1, keepdim=True)
    last = (probabilities > 0).sum(dim=-1, keepdim=True) - 1  # should rounding have the number reach the sum,
    last = last.clamp(min=0)  # or a row be all NaN: its conversation ends by itself
    tokens = order.gather(1, torch.minimum(place, last))[:, 0]
    return torch.where(greedy, logits.argmax(dim=-1), tokens)


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift(z, 30)) * -0x40A7B892E31B1A47
    z = (z ^ _shift(z, 27)) * -0x6B2FB644ECCEEE15
    return z ^ _shift(z, 31)


def _shift(z: Tensor, bits: int) -> Tensor:
    """A logical shift to the right; torch's repeats the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
