"""Draws tokens and codes; each conversation from its own generator, so that its draws are the same in any company."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.options import Options

RESIDUAL_TOP_K = 50  # what transformers' talker gives to its code predictor
RESIDUAL_TOP_P = 0.8


@dataclass(frozen=True)
class Draws:
    """How one kind of token is drawn; temperature 0 is greedy."""

    temperature: float
    top_k: int
    top_p: float


class Sampler:
    """One conversation's generator, and which codes of the first codebook it has spoken."""

    def __init__(self, options: Options, codebook_size: int):
        sampling = options.sampling
        self.text = Draws(sampling.text_temperature, sampling.top_k, sampling.top_p)
        self.code = Draws(sampling.temperature, sampling.top_k, sampling.top_p)
        greedy = sampling.temperature == 0
        self.residual = Draws(0.0 if greedy else 1.0, RESIDUAL_TOP_K, RESIDUAL_TOP_P)
        self.repetition_penalty = sampling.repetition_penalty
        self.spoken = torch.zeros(codebook_size, dtype=torch.bool)
        self.generator = torch.Generator().manual_seed(options.seed)


def draw_text(logits: Tensor, samplers: Sequence[Sampler]) -> Tensor:
    """[B, vocabulary] -> tokens [B]."""
    return _draw(logits, samplers, [sampler.text for sampler in samplers])


def draw_code(logits: Tensor, samplers: Sequence[Sampler]) -> Tensor:
    """Logits of the first codebook [B, V] -> codes [B]; codes already spoken are penalised."""
    for row, sampler in enumerate(samplers):
        if sampler.repetition_penalty != 1.0:
            spoken = sampler.spoken.to(logits.device)
            penalised = torch.where(
                logits[row] < 0, logits[row] * sampler.repetition_penalty, logits[row] / sampler.repetition_penalty
            )
            logits[row] = torch.where(spoken, penalised, logits[row])
    codes = _draw(logits, samplers, [sampler.code for sampler in samplers])
    for code, sampler in zip(codes.tolist(), samplers, strict=True):
        sampler.spoken[code] = True
    return codes


def draw_residual(logits: Tensor, samplers: Sequence[Sampler]) -> Tensor:
    """Logits of any other codebook [B, V] -> codes [B]."""
    return _draw(logits, samplers, [sampler.residual for sampler in samplers])


def _draw(logits: Tensor, samplers: Sequence[Sampler], draws: Sequence[Draws]) -> Tensor:
    chosen = logits.argmax(dim=-1)
    for row, (sampler, draw) in enumerate(zip(samplers, draws, strict=True)):
        if draw.temperature > 0:
            below_likeliest = logits[row] - logits[row].max()  # so that no temperature, however low, overflows
            probabilities = _warp(below_likeliest / draw.temperature, draw).cpu()
            chosen[row] = torch.multinomial(probabilities, 1, generator=sampler.generator).item()
    return chosen


def _warp(logits: Tensor, draw: Draws) -> Tensor:
    """Top-k, then top-p, as transformers' logits warpers: [V] -> probabilities [V]."""
    if 0 < draw.top_k < len(logits):
        logits = logits.masked_fill(logits < logits.topk(draw.top_k).values[-1], -torch.inf)
    if draw.top_p < 1.0:
        ordered, order = logits.sort(descending=True)
        before = ordered.softmax(dim=-1).cumsum(dim=-1) - ordered.softmax(dim=-1)
        logits = logits.masked_fill(
            torch.zeros_like(logits, dtype=torch.bool).scatter(0, order, before > draw.top_p), -torch.inf
        )
    return logits.softmax(dim=-1)
