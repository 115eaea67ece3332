"""The streamed log-mel is transformers' own, 10 ms late, but for a floor that a stream cannot know."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from export.mel_frontend import DELAY_FRAMES, MelFrontend
from tests.conftest import stream_log_mels

TOLERANCE = 1e-4  # of a log-mel within [-1.5, 2]: float32 sums of 400 products, in another order than an FFT's


def whole_clip(extractor, pcm: np.ndarray) -> torch.Tensor:
    clip = pcm.astype(np.float32) / 32768
    features = extractor(clip, sampling_rate=16000, padding=True, truncation=False, return_tensors="pt")
    return features["input_features"][0]


def streamed(extractor, pcm: np.ndarray, samples: int) -> torch.Tensor:
    return torch.cat(stream_log_mels(extractor, pcm, samples), dim=1)


@pytest.mark.parametrize("tick_ms", [80, 160, 320])
def test_streamed_frames_equal_the_extractors(extractor, pcm, tick_ms):
    samples = tick_ms * 16
    pcm = pcm[: len(pcm) // samples * samples]
    expected, found = whole_clip(extractor, pcm), streamed(extractor, pcm, samples)
    assert found.shape == expected.shape
    assert (found[:, :DELAY_FRAMES] == -1.5).all(), "before the clip there is silence"
    floor = expected.max() - 2.0  # 8 in log10 is 2 after the extractor's (x + 4) / 4
    shifted = torch.maximum(found[:, DELAY_FRAMES:], floor)
    assert (shifted - expected[:, :-DELAY_FRAMES]).abs().max() < TOLERANCE


def test_where_the_loudest_comes_first_no_floor_differs(extractor):
    """The one documented difference is gone when the maximum so far is the maximum of the clip."""
    random = np.random.RandomState(0)
    decay = np.exp(-np.arange(5120 * 6) / 4000)
    pcm = (random.standard_normal(5120 * 6) * 9000 * decay).astype(np.int16)
    expected, found = whole_clip(extractor, pcm), streamed(extractor, pcm, 5120)
    loudest = int(expected.amax(0).argmax())
    after = slice(loudest, expected.shape[1] - DELAY_FRAMES)
    assert loudest < 5
    assert (found[:, DELAY_FRAMES:][:, after] - expected[:, after]).abs().max() < TOLERANCE


def test_a_quiet_beginning_keeps_what_the_extractor_cuts_off(extractor):
    quiet_then_loud = np.concatenate([np.full(5120, 3), np.full(5120, 12000)]) * np.resize([1, -1, 1, 1], 10240)
    pcm = quiet_then_loud.astype(np.int16)
    expected, found = whole_clip(extractor, pcm), streamed(extractor, pcm, 5120)
    difference = found[:, 1:20] - expected[:, :19]
    assert difference.min() < -0.1, "below the extractor's floor there is detail"
    assert difference.max() < TOLERANCE


def test_the_tick_length_makes_no_difference(extractor, pcm):
    pcm = pcm[: len(pcm) // 5120 * 5120]
    reference = streamed(extractor, pcm, 5120)
    for samples in (1280, 2560):
        assert (streamed(extractor, pcm, samples) - reference).abs().max() < TOLERANCE


@pytest.mark.parametrize("pcm", [np.zeros(10240, np.int16), np.full(10240, -32768, np.int16)], ids=["silence", "dc"])
def test_extreme_clips_equal_the_extractors(extractor, pcm):
    expected, found = whole_clip(extractor, pcm), streamed(extractor, pcm, 5120)
    floor = expected.max() - 2.0
    assert (torch.maximum(found[:, 1:], floor) - expected[:, :-1]).abs().max() < TOLERANCE


def test_conversations_in_a_batch_do_not_touch(extractor, pcm):
    frontend = MelFrontend(extractor, 5120)
    rows = torch.from_numpy(np.stack([pcm[:5120], pcm[30000:35120], np.zeros(5120, np.int16)]))
    together, past = frontend(rows, *frontend.zero_states(3))
    for row in range(3):
        alone, own_past = frontend(rows[row : row + 1], *frontend.zero_states(1))
        assert (together[row] - alone[0]).abs().max() < TOLERANCE
        assert (past[row] - own_past[0]).abs().max() < TOLERANCE
