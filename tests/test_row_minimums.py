"""Measured minimums of rows: a row's bits do not depend on its batch, also on processors that need much padding."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from contract.controls import Controls
from engine import slots
from engine.checkpoint import Checkpoint
from engine.code_predictor import OnnxCodePredictor
from engine.engine import Engine
from engine.onnx_steps import OnnxSteps
from engine.row_minimums import ONNX_CANDIDATES, TORCH_CANDIDATES, RowMinimums, min_rows, torch_products

SIMULATED_MINIMUM = 16  # rows below which the simulated processor rounds differently
TICKS = 7
COMMIT_TICK = 3


def simulated_products(minimum: int, weights: list[Tensor]):
    """Return products whose bits depend on the number of rows below `minimum`."""
    multiply = torch_products(weights)

    def products(rows: Mapping[int, Tensor]) -> list[Tensor]:
        count = len(next(iter(rows.values())))
        return [product if count >= minimum else product * (1 + count * 1e-6) for product in multiply(rows)]

    return products


@pytest.mark.parametrize(
    ("minimum", "candidates", "expected"),
    [
        (1, ONNX_CANDIDATES, 1),
        (2, ONNX_CANDIDATES, 2),
        (3, ONNX_CANDIDATES, 4),
        (1, TORCH_CANDIDATES, 4),
        (9, TORCH_CANDIDATES, 16),
        (16, TORCH_CANDIDATES, 16),
        (64, TORCH_CANDIDATES, 32),
    ],
)
def test_minimum_is_the_smallest_candidate_with_constant_bits(minimum, candidates, expected):
    weights = [torch.randn(24, 16), torch.randn(40, 16), torch.randn(16, 24)]
    exact = torch_products(weights)
    rows = {16: torch.ones(4, 16), 24: torch.ones(4, 24)}
    assert [product.shape for product in exact(rows)] == [(4, 24), (4, 40), (4, 16)]
    found = min_rows(simulated_products(minimum, weights), weights, candidates)
    # torch's own products may need more rows on this processor than the simulation.
    assert found == max(expected, min_rows(exact, weights, candidates))


def test_cuda_needs_no_padding():
    assert RowMinimums.measure(SimpleNamespace(device=torch.device("cuda"))) == RowMinimums(products=1, steps=1)


@torch.inference_mode()
def test_measured_steps_round_a_row_alike_in_any_batch(checkpoint: Checkpoint):
    """The graphs of a decoder, of which the measurement computes only the products."""
    minimum = RowMinimums.measure(checkpoint.model).steps
    random = torch.Generator().manual_seed(1)
    for model in (checkpoint.model.thinker.model, checkpoint.model.talker.model):
        steps, attention = OnnxSteps(model), model.layers[0].self_attn
        hidden = torch.randn(64, attention.q_proj.weight.shape[1], generator=random)
        attended = torch.randn(64, attention.q_proj.weight.shape[0], generator=random)
        cos, sin = torch.randn(2, 64, 1, attention.head_dim, generator=random)
        expected = (*steps.first(hidden, cos, sin), *steps.between(0, hidden, attended, cos, sin))
        expected += (steps.last(hidden, attended),)
        for count in {minimum, minimum + 1, 7, 13, 33}:
            rows = [value[:count] for value in (hidden, attended, cos, sin)]
            found = (*steps.first(rows[0], *rows[2:]), *steps.between(0, *rows), steps.last(*rows[:2]))
            assert all(torch.equal(one, other[:count]) for one, other in zip(found, expected, strict=True)), count


def states_of_a_conversation(checkpoint, settings, predictor, ticks, others: int) -> list[Tensor]:
    """Return the hidden states of a conversation after each tick, in a batch with `others` other conversations."""
    engine = Engine(checkpoint, settings.with_values(engine={"slots": 6}), predictor)
    keys = [*range(others), "watched"]
    for key in keys:
        engine.open(key, engine.parse_options({"seed": 3}))
    slot, states = engine.conversation("watched").slot, []
    for number in range(TICKS):
        is_commit = number == COMMIT_TICK and settings.engine.dialect == "turn"
        inputs = {key: ticks[number + index]._replace(controls=Controls(commit=is_commit)) for index, key in
                  enumerate(reversed(keys))}  # fmt: skip
        engine.tick(inputs)
        of_slots = engine.slots
        for state in (of_slots.thinker_hidden, of_slots.talker_hidden, of_slots.text_condition, of_slots.last_frame):
            states.append(state[slot].clone())
    return states


@pytest.mark.parametrize(("dialect", "uses_onnx_predictor"), [("sca", False), ("turn", True)])
def test_bits_do_not_depend_on_the_batch_on_a_processor_that_pads_products(
    checkpoint: Checkpoint, settings, predictor, ticks, monkeypatch, dialect, uses_onnx_predictor
):
    """A simulated processor, on which torch's products of fewer than 16 rows depend on the number of rows."""
    linear = F.linear

    def simulated_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        count = x.numel() // x.shape[-1]
        product = linear(x, weight, bias)
        return product if count >= SIMULATED_MINIMUM else product * (1 + count * 1e-6)

    monkeypatch.setattr(F, "linear", simulated_linear)
    changed = settings.with_values(engine={"dialect": dialect}, turn={"detection": "manual"})
    codes = OnnxCodePredictor(predictor) if uses_onnx_predictor else None
    measured = RowMinimums.measure(checkpoint.model)
    assert measured.products == SIMULATED_MINIMUM
    alone = states_of_a_conversation(checkpoint, changed, codes, ticks, others=0)
    for others in (1, 5):
        found = states_of_a_conversation(checkpoint, changed, codes, ticks, others)
        assert all(torch.equal(one, other) for one, other in zip(found, alone, strict=True)), others
    monkeypatch.setattr(slots.RowMinimums, "measure", lambda _: RowMinimums(products=4, steps=measured.steps))
    unpadded = states_of_a_conversation(checkpoint, changed, codes, ticks, others=0)
    found = states_of_a_conversation(checkpoint, changed, codes, ticks, others=5)
    assert not all(torch.equal(one, other) for one, other in zip(found, unpadded, strict=True))
