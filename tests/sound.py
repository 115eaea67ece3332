"""Sound for tests, and its log-mel by the served frontend and by the official feature extractor."""

from __future__ import annotations

import io
import subprocess
from typing import Any

import numpy as np
import torch

from commands.replay import ROUNDING
from config.settings import INPUT_HZ
from engine.tick import TickInput
from export.mel_frontend import MelFrontend
from tests.turn_oracle import official_log_mel

SENTENCE = (
    "I would like to book a table for four people on Friday evening, somewhere quiet, if you have one left. "
    "And tell me, please, whether the kitchen has anything without meat."
)
KOREAN_SENTENCE = "내일 서울 날씨가 어떤지 알려 주시겠어요? 저녁에 비가 올까요, 아니면 맑을까요?"


def is_same_sound(found: np.ndarray, expected: np.ndarray) -> bool:
    """Return whether two sounds of a server can come from the same codes: equal up to `ROUNDING` PCM16 steps."""
    return len(found) == len(expected) and bool(np.all(np.abs(found.astype(int) - expected) <= ROUNDING))


def speech() -> np.ndarray:
    """Return some seconds of speech, synthesised by espeak-ng."""
    return synthesize(SENTENCE, "en")


def synthesize(words: str, voice: str) -> np.ndarray:
    """Synthesise a sentence at 16 kHz, without dither: the same samples on every machine."""
    import soundfile

    espeak = subprocess.run(["espeak-ng", "--stdout", "-v", voice, words], capture_output=True, check=True)
    command = ["sox", "-D", "-", "-r", str(INPUT_HZ), "-c", "1", "-b", "16", "-t", "wav", "-"]
    resampled = subprocess.run(command, input=espeak.stdout, capture_output=True, check=True)
    samples, rate = soundfile.read(io.BytesIO(resampled.stdout), dtype="int16")
    assert rate == INPUT_HZ
    return samples


def with_knock(pcm: np.ndarray) -> np.ndarray:
    """Return sound that starts with its loudest moment, so that no later moment changes the floor of its log-mel."""
    knock = 32000 * np.sign(np.sin(2 * np.pi * 250 / INPUT_HZ * np.arange(400)))
    return np.concatenate([knock.astype(np.int16), pcm[400:] // 2])


def stream_inputs(extractor: Any, pcm: np.ndarray, samples: int = 5120) -> list[TickInput]:
    """Return the complete ticks of a sound as inputs of the engine: samples and the served log-mel without a floor."""
    frontend = MelFrontend(extractor, samples)
    states = frontend.zero_states(1)
    inputs = []
    for start in range(0, len(pcm) - samples + 1, samples):
        tick = pcm[start : start + samples]
        log_mel, *states = frontend(torch.from_numpy(tick[None]), *states)
        inputs.append(TickInput(log_mel[0], tick))
    return inputs


def official_stream(extractor: Any, pcm: np.ndarray, samples: int = 5120) -> list[torch.Tensor]:
    """Return the official log-mel of a sound in ticks of the stream, which is one frame late and starts with silence.

    Correct only for sound of `with_knock`, whose floor is known from the first frame on.
    """
    count = len(pcm) // samples
    frames = torch.cat([torch.full((128, 1), -1.5), official_log_mel(extractor, pcm[: count * samples])], dim=1)
    return list(frames[:, : count * samples // 160].split(samples // 160, dim=1))
