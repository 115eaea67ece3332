"""Sound for tests, and what the engine and the official feature extractor make of it."""

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
    """Whether two sounds of a server are one, of the same codes, whoever shared a batch with them."""
    return len(found) == len(expected) and bool(np.all(np.abs(found.astype(int) - expected) <= ROUNDING))


def speech() -> np.ndarray:
    """Some seconds of speech, said by espeak-ng."""
    return said_by_espeak(SENTENCE, "en")


def said_by_espeak(words: str, voice: str) -> np.ndarray:
    """A sentence at 16 kHz, the same on every machine: without dither."""
    import soundfile

    espeak = subprocess.run(["espeak-ng", "--stdout", "-v", voice, words], capture_output=True, check=True)
    command = ["sox", "-D", "-", "-r", str(INPUT_HZ), "-c", "1", "-b", "16", "-t", "wav", "-"]
    resampled = subprocess.run(command, input=espeak.stdout, capture_output=True, check=True)
    samples, rate = soundfile.read(io.BytesIO(resampled.stdout), dtype="int16")
    assert rate == INPUT_HZ
    return samples


def with_knock(pcm: np.ndarray) -> np.ndarray:
    """Sound whose loudest moment is its first: no later one moves the floor of its log-mel."""
    knock = 32000 * np.sign(np.sin(2 * np.pi * 250 / INPUT_HZ * np.arange(400)))
    return np.concatenate([knock.astype(np.int16), pcm[400:] // 2])


def stream_inputs(extractor: Any, pcm: np.ndarray, samples: int = 5120) -> list[TickInput]:
    """Whole ticks of a sound as the engine gets them: the served log-mel, without a floor, and its samples."""
    frontend = MelFrontend(extractor, samples)
    states = frontend.zero_states(1)
    inputs = []
    for start in range(0, len(pcm) - samples + 1, samples):
        part = pcm[start : start + samples]
        log_mel, *states = frontend(torch.from_numpy(part[None]), *states)
        inputs.append(TickInput(log_mel[0], part))
    return inputs


def official_stream(extractor: Any, pcm: np.ndarray, samples: int = 5120) -> list[torch.Tensor]:
    """The same in ticks of a stream, which is a frame late and begins with silence: of `with_knock`'s sound alone."""
    count = len(pcm) // samples
    frames = torch.cat([torch.full((128, 1), -1.5), official_log_mel(extractor, pcm[: count * samples])], dim=1)
    return list(frames[:, : count * samples // 160].split(samples // 160, dim=1))
