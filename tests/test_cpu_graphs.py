"""What ONNX Runtime computes in torch's place on a CPU gives the same codes, alone and in any company."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.checkpoint import Checkpoint
from engine.code_predictor import OnnxCodePredictor, TorchCodePredictor
from engine.engine import Engine
from engine.onnx_steps import OnnxSteps
from export.code_predictor import export_code_predictor
from export.onnx_stage import ExportError

ROWS = 64


def frames(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, first codes, temperatures (every third row greedy) and uniforms."""
    random = torch.Generator().manual_seed(seed)
    hidden = torch.randn(ROWS, 64, generator=random)
    first = torch.randint(0, 512, (ROWS,), generator=random)
    temperature = (torch.arange(ROWS) % 3 > 0).float()
    return hidden, first, temperature, torch.rand(ROWS, 15, generator=random)


@torch.inference_mode()
@pytest.mark.parametrize("samples", [False, True])
def test_codes_equal_torchs(checkpoint: Checkpoint, predictor: Path, samples):
    """960 codes a seed; a single one in a near tie would change all that follow it in its frame."""
    onnx, torchs = OnnxCodePredictor(predictor), TorchCodePredictor(checkpoint.model.talker, ROWS)
    for seed in range(5):
        hidden, first, temperature, uniforms = frames(seed)
        drawn = (temperature, uniforms) if samples else (None, None)
        found, expected = onnx(hidden, first, *drawn), torchs(hidden, first, *drawn)
        assert torch.equal(found.codes, expected.codes)
        assert (found.embedding - expected.embedding).abs().max() < 1e-5
    assert len(found.codes[:, 1:].unique()) > 200, "it should have much to say"


@torch.inference_mode()
@pytest.mark.parametrize("rows", [4, 5, 7, 8, 16, 33])
def test_not_a_bit_of_a_frame_depends_on_the_company(predictor: Path, rows):
    onnx = OnnxCodePredictor(predictor)
    hidden, first, temperature, uniforms = frames(0)
    for drawn in ((None, None), (temperature, uniforms)):
        whole = onnx(hidden, first, *drawn)
        few = onnx(hidden[:rows], first[:rows], *(part if part is None else part[:rows] for part in drawn))
        assert torch.equal(few.codes, whole.codes[:rows])
        assert torch.equal(few.embedding, whole.embedding[:rows])


def test_a_predictor_that_differs_is_not_served(checkpoint: Checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(TorchCodePredictor, "_forward", lambda *_: torch.zeros(64, 64))
    with pytest.raises(ExportError, match="codes of 6[34] frames differ from torch's"):
        export_code_predictor(checkpoint.model.talker, tmp_path)


def test_a_decoders_single_steps_are_torchs(checkpoint: Checkpoint, settings, ticks, monkeypatch):
    """Twenty ticks, token for token and code for code, with the steps and without."""
    outputs = []
    for possible in (True, False):
        monkeypatch.setattr(OnnxSteps, "possible", staticmethod(lambda _, possible=possible: possible))
        engine = Engine(checkpoint, settings.with_values(engine={"slots": 3}))
        engine.open(1, engine.parse_options({}))
        outputs.append([engine.tick({1: ticks[number]})[1] for number in range(20)])
    for one, other in zip(*outputs, strict=True):
        assert one.tokens == other.tokens
        assert torch.equal(one.codes, other.codes)
