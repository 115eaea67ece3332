"""Log-mel of a few samples, as `WhisperFeatureExtractor` (transformers 5.20.2) computes it, before its floor."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

HOP = 160  # samples a frame, 10 ms
WINDOW = 400
FLOOR_BELOW_PEAK = 8.0  # log10 of energy: 80 dB
MIN_ENERGY = 1e-10
SILENCE = -10.0  # log10 of it


class LogMel:
    """The extractor's arithmetic, operation for operation."""

    def __init__(self, extractor: Any):
        self._filters = torch.from_numpy(extractor.mel_filters).to(torch.float32).T  # [128, 201]
        self._window = torch.hann_window(WINDOW)

    def __call__(self, pcm: np.ndarray) -> Tensor:
        """PCM16 [samples], more than 200 -> log10 of mel energy [128, samples // 160]; both ends are mirrored."""
        signal = torch.from_numpy(pcm.astype(np.float32) / 32768.0)
        spectrum = torch.stft(signal, WINDOW, HOP, window=self._window, return_complex=True)
        energy = (spectrum[..., :-1].abs() ** 2).contiguous()
        return torch.clamp(self._filters @ energy, min=MIN_ENERGY).log10()


def normalise(log_mel: Tensor, peak: Tensor | float) -> Tensor:
    """The extractor's last steps: the floor, 80 dB below `peak`, and the range that the encoder was trained on."""
    return (torch.clamp(log_mel, min=peak - FLOOR_BELOW_PEAK) + 4.0) / 4.0
