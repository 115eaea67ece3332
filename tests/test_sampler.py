"""Draws follow the distribution that transformers' own logits processors give."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from config.settings import SamplingSettings
from engine.options import Options
from engine.sampler import Draws, Sampler, _warp, draw_code, draw_text


def sampler(seed: int = 0, **sampling) -> Sampler:
    defaults = {"text_temperature": 0.0, "temperature": 0.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}
    return Sampler(Options("ethan", "", SamplingSettings(**{**defaults, **sampling}), seed), codebook_size=40)


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (5, 1.0), (0, 0.6), (10, 0.8), (1, 0.1)])
def test_probabilities_equal_transformers(top_k, top_p):
    for seed in range(20):
        logits = torch.randn(40, generator=torch.Generator().manual_seed(seed)) * 3
        expected = TemperatureLogitsWarper(0.7)(None, logits[None])
        if top_k:
            expected = TopKLogitsWarper(top_k)(None, expected)
        if top_p < 1:
            expected = TopPLogitsWarper(top_p)(None, expected)
        found = _warp(logits / 0.7, Draws(0.7, top_k, top_p))
        assert torch.allclose(found, expected.softmax(-1)[0], atol=1e-6)


def test_the_repetition_penalty_equals_transformers():
    penalising, spoken = sampler(repetition_penalty=1.3), []
    for seed in range(30):
        logits = torch.randn(1, 40, generator=torch.Generator().manual_seed(seed))
        processor = RepetitionPenaltyLogitsProcessor(1.3)
        expected = processor(torch.tensor([spoken], dtype=torch.long), logits.clone()) if spoken else logits
        code = int(draw_code(logits.clone(), [penalising]))
        assert code == int(expected.argmax())
        spoken.append(code)


def test_greedy_is_argmax_and_draws_follow_the_probabilities():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    assert int(draw_text(logits, [sampler()])) == 0
    drawing = sampler(text_temperature=1.0)
    counts = torch.bincount(torch.cat([draw_text(logits, [drawing]) for _ in range(4000)]), minlength=4)
    assert torch.allclose(counts / 4000, logits.softmax(-1)[0], atol=0.03)  # 4 deviations of 4000 draws
