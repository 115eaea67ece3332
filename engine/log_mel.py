"""Log-mel of a clip as `WhisperFeatureExtractor` (transformers 5.20.2) computes it, without its floor."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

HOP = 160  # samples per frame, 10 ms
WINDOW = 400  # samples of the Fourier transform, 25 ms
FLOOR_BELOW_PEAK = 8.0  # distance of the floor from the clip's peak, in log10 of energy: 80 dB
MIN_ENERGY = 1e-10
SILENCE = -10.0  # log10 of MIN_ENERGY


class LogMel:
    """The extractor's arithmetic, with the same operations in the same order."""

    def __init__(self, extractor: Any):
        self._filters = torch.from_numpy(extractor.mel_filters).to(torch.float32).T  # [128, 201]
        self._window = torch.hann_window(WINDOW)

    def __call__(self, pcm: np.ndarray) -> Tensor:
        """Return log10 of mel energy [128, samples // 160] of PCM16 [samples], mirrored at both ends.

        Mirroring needs more than 200 samples.
        """
        signal = torch.from_numpy(pcm.astype(np.float32) / 32768.0)
        spectrum = torch.stft(signal, WINDOW, HOP, window=self._window, return_complex=True)
        energy = (spectrum[..., :-1].abs() ** 2).contiguous()
        return torch.clamp(self._filters @ energy, min=MIN_ENERGY).log10()


def normalise(log_mel: Tensor, peak: Tensor | float) -> Tensor:
    """Apply the extractor's last steps: a floor 80 dB below `peak` and the encoder's input range."""
    return (torch.clamp(log_mel, min=peak - FLOOR_BELOW_PEAK) + 4.0) / 4.0
