"""A turn's log-mel equals the official extractor's on the turn's samples, for any sound around the turn."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.clip import Clip
from engine.log_mel import LogMel
from engine.mel_buffer import MelBuffer
from tests.sound import stream_inputs
from tests.turn_oracle import official_log_mel
from tests.turns import lengthened

TOLERANCE = 1e-4  # same as in test_mel_frontend
HOP = 160


@pytest.fixture
def noise() -> np.ndarray:
    """Return ten seconds of noise."""
    return (np.random.RandomState(1).randn(160_000) * 600).astype(np.int16)


def buffer_of(extractor, pcm: np.ndarray) -> MelBuffer:
    buffer = MelBuffer(LogMel(extractor))
    for tick in stream_inputs(extractor, pcm):
        buffer.append(tick.log_mel, tick.pcm)
    return buffer


def assert_official(extractor, buffer: MelBuffer, pcm: np.ndarray, first: int, end: int) -> None:
    found = buffer.clip(Clip(first, first, end, end))
    expected = official_log_mel(extractor, lengthened(pcm[first * HOP : end * HOP]))
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize(("first", "end"), [(0, 150), (33, 190), (64, 164), (101, 320), (5, 6), (90, 189)])
def test_turn_within_continuous_sound_equals_the_extractor(extractor, pcm, first, end):
    """Speech continues across both ends of the turn, after a loud knock."""
    assert_official(extractor, buffer_of(extractor, pcm), pcm, first, end)


def test_knock_before_a_turn_does_not_change_the_turn(extractor, pcm):
    """The floor depends only on the turn: faint sound after a loud knock stays above it."""
    faint = pcm.copy()
    faint[16000:] = faint[16000:] // 100
    assert_official(extractor, buffer_of(extractor, faint), faint, 110, 300)


def test_dropped_frames_before_a_turn_do_not_change_the_turn(extractor, pcm):
    buffer = buffer_of(extractor, pcm)
    buffer.drop_before(130)
    assert_official(extractor, buffer, pcm, 130, 300)


def read_in_windows(extractor, pcm: np.ndarray) -> tuple[torch.Tensor, list[int]]:
    """Read a turn of all ticks in windows as they complete, and stale windows again at the end.

    Return the turn's log-mel and the first frames of the windows that were read twice.
    """
    buffer, read, windows, again = MelBuffer(LogMel(extractor)), 0, {}, []
    end = len(pcm) // HOP
    for tick in stream_inputs(extractor, pcm):
        buffer.append(tick.log_mel, tick.pcm)
        clock = buffer.frames.stop
        while clock - read > 800 and clock < end:
            windows[read] = buffer.clip(Clip(0, read, read + 800))
            read += 800
    while end - read > 800:
        windows[read] = buffer.clip(Clip(0, read, read + 800, end))
        read += 800
    last = Clip(0, read, end, end)
    stale = buffer.first_stale(last)
    if stale is not None:
        for first in [first for first in windows if first >= stale]:
            windows[first] = buffer.clip(Clip(0, first, first + 800, end))
            again.append(first)
        assert buffer.first_stale(last) is None, "expected no stale window after one repetition"
    windows[read] = buffer.clip(last)
    return torch.cat([windows[first] for first in sorted(windows)], dim=1), again


def test_windows_are_read_again_if_the_loudest_moment_is_late(extractor, noise):
    """The sound starts with digital silence, whose cells are below any floor."""
    sound = np.concatenate([np.zeros(5120, np.int16), *[noise] * 2])[: 63 * 5120]
    sound[-20000:] *= 4
    found, again = read_in_windows(extractor, sound)
    assert again == [0, 800], "expected the window with silence and the window after it"
    assert (found - official_log_mel(extractor, sound)).abs().max() < TOLERANCE


def test_windows_above_the_final_floor_are_not_read_again(extractor, noise):
    """The loudest moment is late, but a microphone's noise is less than 80 dB below it."""
    sound = np.concatenate([noise] * 2)[: 62 * 5120].copy()
    sound[-20000:] *= 4
    found, again = read_in_windows(extractor, sound)
    assert not again
    assert (found - official_log_mel(extractor, sound)).abs().max() < TOLERANCE


@pytest.mark.parametrize("first", range(31, 96, 8))
def test_last_window_of_one_frame_equals_the_extractor(extractor, first):
    """A turn of one window and one frame that ends at a border of a tick or between two borders."""
    sound = (np.random.RandomState(2).randn(1024 * HOP) * 600).astype(np.int16)
    buffer, end = buffer_of(extractor, sound), first + 801
    found = torch.cat(
        [buffer.clip(Clip(first, first, first + 800, end)), buffer.clip(Clip(first, end - 1, end, end))], 1
    )
    assert (found - official_log_mel(extractor, sound[first * HOP : end * HOP])).abs().max() < TOLERANCE
