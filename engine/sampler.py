"""Sampling of tokens and codes for all rows of a batch at once.

Every sample of a conversation uses one uniform number. The number depends only on the conversation's seed and on the
count of earlier numbers (the offset), so a seed gives the same samples in any batch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from config.options import Options

RESIDUAL_TOP_K = 50  # sampling parameters of transformers' code predictor
RESIDUAL_TOP_P = 0.8

# Number of likeliest candidates among which a batch samples. Sorting a whole vocabulary takes longer than computing it.
GREEDY, FEW, ALL = 0, 64, 1 << 30


class SamplingParams(NamedTuple):
    """Sampling parameters of the rows of a batch for one kind of token, each [B]."""

    temperature: Tensor  # 0: greedy
    top_k: Tensor  # 0: all
    top_p: Tensor


class SamplingState:
    """Sampling parameters and seed of every slot, and the codes of the first codebook that its speech contains."""

    def __init__(self, slots: int, codes: int, device: torch.device):
        """Allocate `slots` slots and a padding slot for `codes` codes, which include the end of speech."""
        self._text = torch.zeros(slots + 1, 3, device=device)  # temperature, top-k, top-p
        self._codes = torch.zeros(slots + 1, 3, device=device)
        self._penalty = torch.ones(slots + 1, device=device)
        self._seeds = torch.zeros(slots + 1, dtype=torch.int64, device=device)
        self._seen = torch.zeros(slots + 1, codes, dtype=torch.bool, device=device)
        self._true = torch.ones((), dtype=torch.bool, device=device)
        for slot in range(slots + 1):
            self.reset(slot)

    def begin(self, slot: int, options: Options) -> None:
        """Set a slot to a conversation's options."""
        sampling, device = options.sampling, self._seeds.device
        text = [sampling.text_temperature, float(sampling.text_top_k), sampling.text_top_p]
        codes = [sampling.temperature, float(sampling.top_k), sampling.top_p]
        self._text[slot] = torch.tensor(text, device=device)
        self._codes[slot] = torch.tensor(codes, device=device)
        self._penalty[slot] = sampling.repetition_penalty
        self._seeds[slot] = options.seed
        self._seen[slot] = False

    def begin_speech(self, slot: int) -> None:
        """Forget the codes of the slot's earlier speech."""
        self._seen[slot] = False

    def reset(self, slot: int) -> None:
        """Set a slot without a conversation to greedy sampling."""
        self._text[slot] = self._codes[slot] = torch.tensor([0.0, 0.0, 1.0], device=self._seeds.device)
        self._penalty[slot] = 1.0
        self._seeds[slot] = 0
        self._seen[slot] = False

    def text(self, slots: Tensor) -> SamplingParams:
        """Return the parameters for text tokens."""
        return SamplingParams(*self._text[slots].unbind(1))

    def first_code(self, slots: Tensor) -> SamplingParams:
        """Return the parameters for codes of the first codebook."""
        return SamplingParams(*self._codes[slots].unbind(1))

    def residual_temperature(self, slots: Tensor) -> Tensor:
        """Return the temperature of the other codebooks [B]: 0 if the first codebook is greedy, else 1."""
        return (self._codes[slots, 0] > 0).float()

    def penalise(self, logits: Tensor, slots: Tensor) -> Tensor:
        """Apply the repetition penalty to logits of the first codebook [B, V]."""
        penalty = self._penalty[slots, None]
        seen = self._seen[slots, : logits.shape[1]]
        return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)

    def note_first_codes(self, slots: Tensor, codes: Tensor) -> None:
        """Record codes of the first codebook [B] for the repetition penalty."""
        self._seen.index_put_((slots, codes), self._true)

    def uniforms(self, slots: Tensor, offsets: Tensor, count: int) -> Tensor:
        """Return `count` numbers for each row, uniform over [0, 1), from the row's offset [B] on: [B, count].

        SplitMix64 (Steele, Lea, Flood 2014: Fast splittable pseudorandom number generators), on wrapping int64.
        """
        index = offsets[:, None] + torch.arange(1, count + 1, device=offsets.device)
        mixed = _mix(_mix(self._seeds[slots])[:, None] + index * -0x61C8864680B583EB)
        return _shift(mixed, 40).float() / 2**24


def candidates(samples: bool, top_k: int) -> int:
    """Return the number of candidates for a conversation's top-k: GREEDY, FEW or ALL."""
    if not samples:
        return GREEDY
    return FEW if 0 < top_k <= FEW else ALL


def residual_params(temperature: Tensor) -> SamplingParams:
    """Return the parameters for codes of the other codebooks, for temperatures [B]."""
    return SamplingParams(
        temperature,
        torch.full_like(temperature, RESIDUAL_TOP_K),
        torch.full_like(temperature, RESIDUAL_TOP_P),
    )


def sample(logits: Tensor, params: SamplingParams, uniforms: Tensor, max_candidates: int = ALL) -> Tensor:
    """Sample tokens [B] from logits [B, V] float32 with uniforms [B] in [0, 1).

    Top-k, then top-p, as transformers' warpers. Rows sample among their `max_candidates` likeliest tokens, which a
    caller sets to the largest top-k of the rows, or to ALL.
    """
    if max_candidates < logits.shape[1]:
        ordered, order = logits.topk(max_candidates)
    else:
        ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    greedy = params.temperature == 0
    relative = ordered - ordered[:, :1]  # at most 0: division by a low temperature cannot overflow to infinity
    scores = relative / torch.where(greedy, 1.0, params.temperature)[:, None]
    kth = ordered.gather(1, (params.top_k[:, None].long() - 1).clamp(0, ordered.shape[1] - 1))
    in_top_k = (ordered >= kth) | (params.top_k[:, None] == 0)  # includes all ties of the k-th
    probabilities = scores.masked_fill(~in_top_k, -torch.inf).softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    in_top_p = (before < params.top_p[:, None]) | (params.top_p[:, None] == 1)
    probabilities = probabilities * in_top_p
    cumulative = probabilities.cumsum(dim=-1)
    rank = (cumulative <= uniforms[:, None] * cumulative[:, -1:]).sum(dim=-1, keepdim=True)
    # Rounding may let the number reach the sum; then the last possible token is sampled. A row of NaN has no possible
    # token; any rank will do, because `Engine.tick` closes its conversation.
    last = ((probabilities > 0).sum(dim=-1, keepdim=True) - 1).clamp(min=0)
    tokens = order.gather(1, torch.minimum(rank, last))[:, 0]
    return torch.where(greedy, logits.argmax(dim=-1), tokens)


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift(z, 30)) * -0x40A7B892E31B1A47
    z = (z ^ _shift(z, 27)) * -0x6B2FB644ECCEEE15
    return z ^ _shift(z, 31)


def _shift(z: Tensor, bits: int) -> Tensor:
    """Shift to the right and fill with zeros; torch's operator repeats the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
