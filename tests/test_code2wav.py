"""The streamed waveform equals transformers' one-shot waveform, 555 samples late and without a lost sample."""

from __future__ import annotations

import pytest
import torch

from engine.checkpoint import Checkpoint
from export.code2wav import DELAY_SAMPLES, Code2Wav
from export.weights import load_code2wav
from tests.oracle import one_shot_waveform, signal_to_noise_db

PCM16_STEP = 1 / 32767
FRAMES = 240  # 19 s: more than three attention windows


def random_codes(batch: int, frames: int = FRAMES) -> torch.Tensor:
    return torch.randint(0, 512, (batch, 16, frames), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def stream(
    stage: Code2Wav, codes: torch.Tensor, frames: int, begins: tuple[int, ...] = ()
) -> tuple[torch.Tensor, list]:
    """Return the waveform and the shapes of the states after each tick; speech starts in the ticks of `begins`."""
    states = stage.zero_states(len(codes))
    waveform, shapes = [], []
    for start in range(0, codes.shape[2], frames):
        begin = torch.full((len(codes), 1), int(start // frames in begins))
        tick, *states = stage.waveform(codes[:, :, start : start + frames], begin, *states)
        waveform.append(tick)
        shapes.append([state.shape for state in states])
    return torch.cat(waveform, dim=1), shapes


@pytest.mark.parametrize("frames", [1, 2, 4])
def test_streamed_equals_one_shot(checkpoint: Checkpoint, frames):
    codes = random_codes(batch=2)
    waveform, shapes = stream(Code2Wav(checkpoint.model.code2wav, frames), codes, frames)
    for row in range(2):
        expected = one_shot_waveform(checkpoint.model.code2wav, codes[row])
        assert waveform.shape[1] == 1920 * FRAMES == len(expected), "expected every sample"
        assert (waveform[row, :DELAY_SAMPLES] == 0).all(), "expected silence in the place of the pre-roll"
        assert signal_to_noise_db(expected, waveform[row]) > 90
    assert all(shape == shapes[0] for shape in shapes), "expected states of constant size"


def test_rows_of_a_batch_are_independent(checkpoint: Checkpoint):
    """A stream that is 10 ticks old and a new stream share a batch."""
    stage, codes = Code2Wav(checkpoint.model.code2wav, 4), random_codes(batch=2, frames=80)
    alone = [stream(stage, codes[row : row + 1], 4)[0][0] for row in range(2)]
    states = stage.zero_states(1)
    with torch.no_grad():
        for tick in range(10):
            _, *states = stage(codes[:1, :, 4 * tick : 4 * tick + 4], torch.zeros(1, 1), *states)
        states = [torch.cat([old, new]) for old, new in zip(states, stage.zero_states(1), strict=True)]
        for tick in range(5):
            both = torch.stack([codes[0, :, 40 + 4 * tick : 44 + 4 * tick], codes[1, :, 4 * tick : 4 * tick + 4]])
            waveform, *states = stage.waveform(both, torch.zeros(2, 1), *states)
            new, old = slice(7680 * tick, 7680 * (tick + 1)), slice(7680 * (tick + 10), 7680 * (tick + 11))
            assert (waveform[0] - alone[0][old]).abs().max() < PCM16_STEP
            assert (waveform[1] - alone[1][new]).abs().max() < PCM16_STEP


def test_code2wav_loaded_without_the_other_modules_equals_the_checkpoint(checkpoint: Checkpoint, checkpoint_folder):
    """The export loads code2wav without the thinker and the talker."""
    alone = load_code2wav(checkpoint_folder).state_dict()
    whole = checkpoint.model.code2wav.state_dict()
    assert alone.keys() == whole.keys()
    assert all(torch.equal(alone[name], whole[name]) for name in whole)


def test_code2wav_with_another_delay_is_refused(checkpoint: Checkpoint):
    whole = checkpoint.model.code2wav
    other = {**whole.config.to_dict(), "upsample_rates": (6, 5, 4, 4), "upsampling_ratios": (2, 2)}
    code2wav = type(whole)(type(whole.config)(**other))
    with pytest.raises(ValueError, match="delays 580 samples, expected 555"):
        Code2Wav(code2wav, 4)


def test_silence_ends_a_speech_and_begin_starts_one(checkpoint: Checkpoint):
    """Three speeches: silence after the first, exact to the sample, and none between the second and the third."""
    stage = Code2Wav(checkpoint.model.code2wav, 4)
    first, second, third = (random_codes(3, 20)[row : row + 1] for row in range(3))
    alone = [stream(stage, codes, 4)[0][0] for codes in (first, second, third)]
    silence = torch.full((1, 16, 6), -1)
    codes = torch.cat([first[..., :18], silence, second, third], 2)
    waveform, _ = stream(stage, codes, 4, begins=(11,))
    sound = waveform[0].split([18 * 1920, 6 * 1920, 20 * 1920, 20 * 1920])
    assert torch.equal(sound[0], alone[0][: 18 * 1920])
    assert not sound[1].any()
    assert torch.equal(sound[2], alone[1])
    assert torch.equal(sound[3], alone[2])


@torch.no_grad()
def test_pcm16_is_the_waveform_rounded(checkpoint: Checkpoint):
    stage, codes, begin = Code2Wav(checkpoint.model.code2wav, 4), random_codes(1, 4), torch.zeros(1, 1)
    pcm, *states = stage(codes, begin, *stage.zero_states(1))
    waveform, *expected = stage.waveform(codes, begin, *stage.zero_states(1))
    assert torch.equal(pcm, (waveform * 32767).round().to(torch.int16))
    assert all(torch.equal(one, other) for one, other in zip(states, expected, strict=True))
