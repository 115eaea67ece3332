"""Samples follow the distribution of transformers' logits processors."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from config import Settings
from config.options import Options
from config.settings import SamplingSettings
from engine.sampler import ALL, FEW, GREEDY, SamplingParams, SamplingState, candidates, residual_params, sample

VOCABULARY = 40
SLOT = torch.tensor([0])
DRAWS = 4000

TURN = Settings.load(environ={}).turn


def state(seed: int = 0, **sampling) -> SamplingState:
    """Return the state of one slot for a conversation with these sampling options."""
    greedy = {"text_temperature": 0.0, "text_top_k": 0, "text_top_p": 1.0}
    defaults = {**greedy, "temperature": 0.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}
    one = SamplingState(slots=1, codes=VOCABULARY, device=torch.device("cpu"))
    one.begin(0, Options("ethan", "", SamplingSettings(**{**defaults, **sampling}), TURN, seed))
    return one


@pytest.mark.parametrize("kind", ["text", "codes"])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (5, 1.0), (0, 0.6), (10, 0.8), (1, 0.1)])
def test_probabilities_equal_transformers(top_k, top_p, kind):
    """Over an even grid of uniform numbers, a token's share of the samples equals its probability."""
    grid = (torch.arange(DRAWS) + 0.5) / DRAWS
    slots = torch.zeros(DRAWS, dtype=torch.int64)
    if kind == "codes":
        params = state(temperature=0.7, top_k=top_k, top_p=top_p).first_code(slots)
    else:
        params = state(text_temperature=0.7, text_top_k=top_k, text_top_p=top_p).text(slots)
    for seed in range(20):
        logits = torch.randn(1, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 3
        expected = TemperatureLogitsWarper(0.7)(None, logits)
        if top_k:
            expected = TopKLogitsWarper(top_k)(None, expected)
        if top_p < 1:
            expected = TopPLogitsWarper(top_p)(None, expected)
        sampled = sample(logits.expand(DRAWS, -1), params, grid)
        share = torch.bincount(sampled, minlength=VOCABULARY) / DRAWS
        assert torch.allclose(share, expected.softmax(-1)[0], atol=2 / DRAWS)  # one grid cell at each border
        assert not share[expected[0] == -torch.inf].any()


@pytest.mark.parametrize(
    ("logits", "top_k", "top_p"),
    [([5.0, 3.0, 3.0, 3.0, 1.0], 2, 1.0), ([2.0, 1.0, 0.0, 0.0], 0, 0.5), ([0.0, 0.0, 0.0, 0.0], 0, 0.5)],
    ids=["ties of the k-th token", "top-p is exceeded", "top-p is reached exactly"],
)
@pytest.mark.parametrize("max_candidates", [ALL, 4])
def test_ties_and_edges_of_top_p_equal_transformers(logits, top_k, top_p, max_candidates):
    """Ties are frequent in half precision."""
    row = torch.tensor([logits])
    expected = TopKLogitsWarper(top_k)(None, row) if top_k else row
    expected = TopPLogitsWarper(top_p)(None, expected) if top_p < 1 else expected
    slots, grid = torch.zeros(DRAWS, dtype=torch.int64), (torch.arange(DRAWS) + 0.5) / DRAWS
    params = state(temperature=1.0, top_k=top_k, top_p=top_p).first_code(slots)
    sampled = set(sample(row.expand(DRAWS, -1), params, grid, max_candidates).tolist())
    assert len(sampled) == int((expected[0] > -torch.inf).sum())


def test_repetition_penalty_equals_transformers():
    penalising, codes = state(repetition_penalty=1.3), []
    for seed in range(30):
        logits = torch.randn(1, VOCABULARY, generator=torch.Generator().manual_seed(seed))
        processor = RepetitionPenaltyLogitsProcessor(1.3)
        expected = processor(torch.tensor([codes], dtype=torch.long), logits.clone()) if codes else logits
        found = penalising.penalise(logits, SLOT)
        assert torch.equal(found, expected)
        code = found.argmax(dim=-1)
        penalising.note_first_codes(SLOT, code)
        codes.append(int(code))


def test_reset_slot_is_greedy_and_has_no_penalty():
    used = state(text_temperature=1.0, temperature=1.0, repetition_penalty=2.0, seed=3)
    used.note_first_codes(SLOT, torch.tensor([4]))
    used.reset(0)
    logits = torch.randn(1, VOCABULARY)
    assert torch.equal(used.penalise(logits, SLOT), logits)
    for params in (used.text(SLOT), used.first_code(SLOT), residual_params(used.residual_temperature(SLOT))):
        assert torch.equal(sample(logits, params, torch.tensor([0.999])), logits.argmax(dim=-1))


def test_greedy_rows_are_greedy_in_a_batch_that_samples():
    logits = torch.randn(6, VOCABULARY)
    params = state(temperature=2.0).first_code(torch.zeros(6, dtype=torch.int64))
    params = params._replace(temperature=torch.tensor([0.0, 2.0, 0.0, 2.0, 0.0, 2.0]))
    sampled = sample(logits, params, torch.full((6,), 0.97))
    assert torch.equal(sampled[::2], logits.argmax(dim=-1)[::2])
    assert not torch.equal(sampled[1::2], logits.argmax(dim=-1)[1::2])


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1])
def test_uniforms_are_even_and_depend_only_on_seed_and_offset(seed):
    one = state(seed=seed)
    numbers = one.uniforms(SLOT, torch.tensor([0]), DRAWS)[0]
    assert ((numbers >= 0) & (numbers < 1)).all()
    counts = torch.histc(numbers, bins=16, min=0, max=1)
    chi_square = ((counts - DRAWS / 16).square() / (DRAWS / 16)).sum()
    assert chi_square < 37.7, "15 degrees of freedom: probability 0.001"
    neighbours = torch.corrcoef(torch.stack([numbers[:-1], numbers[1:]]))[0, 1]
    assert abs(neighbours) < 4 / DRAWS**0.5
    assert torch.equal(one.uniforms(SLOT, torch.tensor([100]), 5)[0], numbers[100:105])
    assert not torch.equal(state(seed=max(0, seed - 1) or 5).uniforms(SLOT, torch.tensor([0]), 8)[0], numbers[:8])


def test_uniform_of_one_samples_the_last_possible_token():
    logits = torch.randn(1, VOCABULARY)
    params = state(temperature=1.0, top_k=3).first_code(SLOT)
    sampled = sample(logits, params, torch.tensor([1.0]))  # above the range of `uniforms`
    assert int(sampled) == int(logits.topk(3).indices[0, 2])


def test_few_candidates_give_the_same_samples_as_all():
    """A whole vocabulary in float32, with almost no ties."""
    random = torch.Generator().manual_seed(3)
    logits = torch.randn(50, 152_064, generator=random) * 3
    params = SamplingParams(
        torch.tensor([0.0, 0.6, 1.0, 0.7, 1.3] * 10),
        torch.tensor([20.0, 20.0, 64.0, 1.0, 50.0] * 10),
        torch.tensor([0.95, 0.95, 1.0, 0.5, 0.3] * 10),
    )
    uniforms = torch.rand(50, generator=random)
    assert torch.equal(sample(logits, params, uniforms, FEW), sample(logits, params, uniforms))
    assert len(set(sample(logits, params, uniforms, FEW).tolist())) > 20


def test_candidates_follow_from_top_k():
    assert [candidates(True, top_k) for top_k in (0, 1, 64, 65)] == [ALL, FEW, FEW, ALL]
    assert candidates(False, 0) == GREEDY
