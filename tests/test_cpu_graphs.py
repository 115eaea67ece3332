"""ONNX Runtime returns torch's codes on a CPU, for any size of the batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.checkpoint import Checkpoint
from engine.code_predictor import OnnxCodePredictor, TorchCodePredictor
from engine.engine import Engine
from engine.onnx_steps import OnnxSteps
from engine.row_minimums import RowMinimums
from export.code_predictor import export_code_predictor
from export.onnx_stage import ExportError

ROWS = 64


def frames(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return random hidden states, first codes, temperatures (every third row greedy) and uniforms."""
    random = torch.Generator().manual_seed(seed)
    hidden = torch.randn(ROWS, 64, generator=random)
    first = torch.randint(0, 512, (ROWS,), generator=random)
    temperature = (torch.arange(ROWS) % 3 > 0).float()
    return hidden, first, temperature, torch.rand(ROWS, 15, generator=random)


@torch.inference_mode()
@pytest.mark.parametrize("samples", [False, True])
def test_codes_equal_those_of_torch(checkpoint: Checkpoint, predictor: Path, samples):
    """960 codes for each seed; a different code in a near tie would change all later codes of its frame."""
    by_onnx, by_torch = OnnxCodePredictor(predictor), TorchCodePredictor(checkpoint.model.talker, ROWS)
    for seed in range(5):
        hidden, first, temperature, uniforms = frames(seed)
        sampling = (temperature, uniforms) if samples else (None, None)
        found, expected = by_onnx(hidden, first, *sampling), by_torch(hidden, first, *sampling)
        assert torch.equal(found.codes, expected.codes)
        assert (found.embedding - expected.embedding).abs().max() < 1e-5
    assert len(found.codes[:, 1:].unique()) > 200, "expected varied codes"


@torch.inference_mode()
@pytest.mark.parametrize("rows", [1, 2, 4, 5, 7, 8, 16, 33])
def test_bits_of_a_frame_do_not_depend_on_the_batch(checkpoint: Checkpoint, predictor: Path, rows):
    rows = max(rows, RowMinimums.measure(checkpoint.model).steps)
    onnx = OnnxCodePredictor(predictor)
    hidden, first, temperature, uniforms = frames(0)
    for sampling in ((None, None), (temperature, uniforms)):
        large = onnx(hidden, first, *sampling)
        small = onnx(hidden[:rows], first[:rows], *(value if value is None else value[:rows] for value in sampling))
        assert torch.equal(small.codes, large.codes[:rows])
        assert torch.equal(small.embedding, large.embedding[:rows])


def test_export_fails_if_codes_differ(checkpoint: Checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(TorchCodePredictor, "_forward", lambda *_: torch.zeros(64, 64))
    with pytest.raises(ExportError, match="codes of 6[34] frames differ from torch's"):
        export_code_predictor(checkpoint.model.talker, tmp_path)


def test_steps_of_a_decoder_equal_those_of_torch(checkpoint: Checkpoint, settings, ticks, monkeypatch):
    """Tokens and codes of twenty ticks, with ONNX Runtime and without."""
    outputs = []
    for possible in (True, False):
        monkeypatch.setattr(OnnxSteps, "possible", staticmethod(lambda _, possible=possible: possible))
        engine = Engine(checkpoint, settings.with_values(engine={"slots": 3}))
        engine.open(1, engine.parse_options({}))
        outputs.append([engine.tick({1: ticks[number]})[1] for number in range(20)])
    for one, other in zip(*outputs, strict=True):
        assert one.tokens == other.tokens
        assert torch.equal(one.codes, other.codes)
