"""A turn's log-mel is the official extractor's on the turn's own samples, whatever sounded around it."""

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

TOLERANCE = 1e-4  # as in test_mel_frontend
HOP = 160


@pytest.fixture
def noise() -> np.ndarray:
    """Ten seconds of it."""
    return (np.random.RandomState(1).randn(160_000) * 600).astype(np.int16)


def buffer_of(extractor, pcm: np.ndarray) -> MelBuffer:
    buffer = MelBuffer(LogMel(extractor))
    for heard in stream_inputs(extractor, pcm):
        buffer.append(heard.log_mel, heard.pcm)
    return buffer


def assert_official(extractor, buffer: MelBuffer, pcm: np.ndarray, first: int, end: int) -> None:
    found = buffer.clip(Clip(first, first, end, end))
    expected = official_log_mel(extractor, lengthened(pcm[first * HOP : end * HOP]))
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize(("first", "end"), [(0, 150), (33, 190), (64, 164), (101, 320), (5, 6), (90, 189)])
def test_a_turn_in_the_middle_of_sound_equals_the_extractors(extractor, pcm, first, end):
    """Speech runs through both ends, and a knock came before."""
    assert_official(extractor, buffer_of(extractor, pcm), pcm, first, end)


def test_a_knock_before_a_turn_does_not_touch_it(extractor, pcm):
    """Its floor is its own: after a loud knock nothing faint is lost."""
    faint = pcm.copy()
    faint[16000:] = faint[16000:] // 100
    assert_official(extractor, buffer_of(extractor, faint), faint, 110, 300)


def test_frames_before_a_turn_can_be_dropped(extractor, pcm):
    buffer = buffer_of(extractor, pcm)
    buffer.drop_before(130)
    assert_official(extractor, buffer, pcm, 130, 300)


def read_in_windows(extractor, pcm: np.ndarray) -> tuple[torch.Tensor, list[int]]:
    """A turn of all ticks, its windows read as they complete, and again where they must be; the windows read again."""
    buffer, read, parts, again = MelBuffer(LogMel(extractor)), 0, {}, []
    end = len(pcm) // HOP
    for heard in stream_inputs(extractor, pcm):
        buffer.append(heard.log_mel, heard.pcm)
        clock = buffer.frames.stop
        while clock - read > 800 and clock < end:
            parts[read] = buffer.clip(Clip(0, read, read + 800))
            read += 800
    while end - read > 800:
        parts[read] = buffer.clip(Clip(0, read, read + 800, end))
        read += 800
    last = Clip(0, read, end, end)
    stale = buffer.first_stale(last)
    if stale is not None:
        for first in [first for first in parts if first >= stale]:
            parts[first] = buffer.clip(Clip(0, first, first + 800, end))
            again.append(first)
        assert buffer.first_stale(last) is None, "once is enough"
    parts[read] = buffer.clip(last)
    return torch.cat([parts[first] for first in sorted(parts)], dim=1), again


def test_a_long_turn_whose_loudest_moment_is_late_is_read_again(extractor, noise):
    """Digital silence first: its cells lie under any floor."""
    sound = np.concatenate([np.zeros(5120, np.int16), *[noise] * 2])[: 63 * 5120]
    sound[-20000:] *= 4
    found, again = read_in_windows(extractor, sound)
    assert again == [0, 800], "and what was read after it"
    assert (found - official_log_mel(extractor, sound)).abs().max() < TOLERANCE


def test_with_a_microphones_noise_nothing_is_read_again(extractor, noise):
    """The loudest moment comes late, and the noise lies less than 80 dB below it."""
    sound = np.concatenate([noise] * 2)[: 62 * 5120].copy()
    sound[-20000:] *= 4
    found, again = read_in_windows(extractor, sound)
    assert not again
    assert (found - official_log_mel(extractor, sound)).abs().max() < TOLERANCE


@pytest.mark.parametrize("first", range(31, 96, 8))
def test_a_last_window_of_one_frame_is_there(extractor, first):
    """A turn of a window and a frame, whose end falls on a tick's border or anywhere else."""
    sound = (np.random.RandomState(2).randn(1024 * HOP) * 600).astype(np.int16)
    buffer, end = buffer_of(extractor, sound), first + 801
    found = torch.cat(
        [buffer.clip(Clip(first, first, first + 800, end)), buffer.clip(Clip(first, end - 1, end, end))], 1
    )
    assert (found - official_log_mel(extractor, sound[first * HOP : end * HOP])).abs().max() < TOLERANCE
