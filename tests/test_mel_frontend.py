"""The streamed log-mel equals transformers' before the floor, 10 ms late."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.log_mel import normalise
from export.mel_frontend import DELAY_FRAMES, MelFrontend
from tests.sound import stream_inputs
from tests.turn_oracle import official_log_mel

WEAKEST_CELLS = 1e-3  # error of the weakest cells before the floor, in log10; float32 allows no less
TOLERANCE = 1e-4  # error of a log-mel in [-1.5, 2]: float32 sums of 400 products in another order than the FFT's


def streamed(extractor, pcm: np.ndarray, samples: int) -> torch.Tensor:
    return torch.cat([tick.log_mel for tick in stream_inputs(extractor, pcm, samples)], dim=1)


def floored(log_mel: torch.Tensor, official: torch.Tensor) -> torch.Tensor:
    """Apply the floor of the official clip, whose peak is 4 (max - 1) in log10."""
    return normalise(log_mel, float(official.max()) * 4 - 4)


@pytest.mark.parametrize("tick_ms", [80, 160, 320])
def test_streamed_frames_with_the_floor_of_the_clip_equal_the_extractor(extractor, pcm, tick_ms):
    samples = tick_ms * 16
    pcm = pcm[: len(pcm) // samples * samples]
    expected, found = official_log_mel(extractor, pcm), streamed(extractor, pcm, samples)
    assert found.shape == expected.shape
    assert (found[:, :DELAY_FRAMES] == -10).all(), "expected silence before the clip"
    shifted = floored(found[:, DELAY_FRAMES:], expected)
    assert (shifted - expected[:, :-DELAY_FRAMES]).abs().max() < TOLERANCE


def test_quiet_start_keeps_detail_below_the_floor_of_the_extractor(extractor):
    quiet_then_loud = np.concatenate([np.full(5120, 3), np.full(5120, 12000)]) * np.resize([1, -1, 1, 1], 10240)
    pcm = quiet_then_loud.astype(np.int16)
    expected, found = official_log_mel(extractor, pcm), streamed(extractor, pcm, 5120)
    assert (expected[:, :19].amin() - (found[:, 1:20].amin() + 4) / 4) > 0.1


def test_log_mel_does_not_depend_on_the_tick_length(extractor, pcm):
    pcm = pcm[: len(pcm) // 5120 * 5120]
    reference = streamed(extractor, pcm, 5120)
    for samples in (1280, 2560):
        assert (streamed(extractor, pcm, samples) - reference).abs().max() < WEAKEST_CELLS


@pytest.mark.parametrize("pcm", [np.zeros(10240, np.int16), np.full(10240, -32768, np.int16)], ids=["silence", "dc"])
def test_extreme_clips_equal_the_extractor(extractor, pcm):
    expected, found = official_log_mel(extractor, pcm), streamed(extractor, pcm, 5120)
    assert (floored(found[:, 1:], expected) - expected[:, :-1]).abs().max() < TOLERANCE


def test_rows_of_a_batch_are_independent(extractor, pcm):
    frontend = MelFrontend(extractor, 5120)
    rows = torch.from_numpy(np.stack([pcm[:5120], pcm[30000:35120], np.zeros(5120, np.int16)]))
    together, past = frontend(rows, *frontend.zero_states(3))
    for row in range(3):
        alone, own_past = frontend(rows[row : row + 1], *frontend.zero_states(1))
        assert (together[row] - alone[0]).abs().max() < 4 * TOLERANCE  # before the extractor's division by 4
        assert (past[row] - own_past[0]).abs().max() < TOLERANCE
