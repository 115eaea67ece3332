"""PCM16 to log-mel, a tick at a time: the streaming form of transformers' `WhisperFeatureExtractor` (5.20.2).

A frame is 400 samples centred on a multiple of 160, so the samples of a tick complete all of its frames except the
last: the stream is one frame (10 ms) late. Frame 0 of the stream precedes the clip and is silence; frame k + 1 of the
stream is frame k of the clip.

The stream omits the extractor's floor, 80 dB below the loudest cell of the whole clip, and its scaling: a stream has no
access to later samples, and values below a floor cannot be recovered. The engine applies both (`engine/log_mel.py`).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import WhisperFeatureExtractor

from export.stateful_module import StatefulModule, TensorSpec

DELAY_FRAMES = 1
HOP = 160
WINDOW = 400
CONTEXT = HOP * DELAY_FRAMES + WINDOW // 2  # samples that the first frame of a tick needs of the previous ticks: 360
SILENCE = -10.0  # log10 of the minimum mel energy, 1e-10


class MelFrontend(StatefulModule):
    """`forward(AUDIO_IN, past) -> (LOG_MEL, new_past)`.

    `past` packs the last 360 samples, and 1 once the clip has begun; zeros before. `LOG_MEL` is log10 of the energy of
    128 mel bins, clamped at -10.
    """

    dft: Tensor
    windows: Tensor | None
    filters: Tensor

    def __init__(self, extractor: WhisperFeatureExtractor, samples: int, products: bool = False):
        """Build the DFT of ticks of `samples`; `products` selects a matrix product for it, see `export/products.py`."""
        super().__init__()
        self.frames = samples // HOP
        self.inputs = (TensorSpec("AUDIO_IN", torch.int16, (samples,)),)
        self.states = (TensorSpec("past", torch.float32, (CONTEXT + 1,)),)
        self.outputs = (TensorSpec("LOG_MEL", torch.float32, (extractor.feature_size, self.frames)),)

        # The DFT as a convolution: ONNX Runtime's CUDA provider has no STFT kernel.
        time = torch.arange(WINDOW, dtype=torch.float64)
        bins = torch.arange(WINDOW // 2 + 1, dtype=torch.float64)
        angle = 2 * torch.pi / WINDOW * torch.outer(bins, time)
        window = torch.hann_window(WINDOW).double()  # float32 first, as in the extractor: half the difference
        dft = torch.cat([angle.cos() * window, -angle.sin() * window])
        self.register_buffer("dft", dft[:, None].float())  # [402, 1, 400]
        windows = torch.arange(self.frames)[:, None] * HOP + torch.arange(WINDOW)
        self.register_buffer("windows", windows if products else None)  # sample indices of each frame, [frames, 400]
        self.register_buffer("filters", torch.from_numpy(extractor.mel_filters).float().T.contiguous())  # [128, 201]

    def forward(self, audio: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """Map audio [B, samples] int16 and past [B, 361] to log-mel [B, 128, frames] and the new past."""
        samples = audio.float() / 32768.0
        begun = past[:, CONTEXT:] > 0

        # The clip is extended to the left by its samples 1 to 200, mirrored (the reflection of torch.stft).
        mirrored = F.pad(samples[:, 1 : WINDOW // 2 + 1].flip(1), (CONTEXT - WINDOW // 2, 0))
        signal = torch.cat([torch.where(begun, past[:, :CONTEXT], mirrored), samples], dim=1)

        if self.windows is None:
            spectrum = F.conv1d(signal[:, None], self.dft, stride=HOP)
        else:
            spectrum = (signal[:, self.windows] @ self.dft[:, 0].T).transpose(1, 2)
        real, imaginary = spectrum.chunk(2, dim=1)  # [B, 201, frames]
        energy = self.filters @ (real**2 + imaginary**2)
        log_mel = energy.clamp(min=1e-10).log10()
        before_clip = F.pad(~begun, (0, self.frames - 1))[:, None]  # frame 0 of the stream, in the first tick
        log_mel = log_mel.masked_fill(before_clip, SILENCE)

        new_past = torch.cat([signal[:, -CONTEXT:], torch.ones_like(past[:, CONTEXT:])], dim=1)
        return log_mel, new_past
