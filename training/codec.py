"""The codec: an encoder and a residual quantizer, which are used in training only, and the checkpoint's code2wav.

The decoder is transformers' own code2wav. Its input is the mean of 16 embeddings: with the codebooks' entries times 16
as embeddings, the mean is the quantized latent.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.audio_utils import mel_filter_bank
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeCode2Wav

from config.settings import CODEC_FRAME_MS, OUTPUT_HZ
from training.model import CODEBOOK, CODEBOOKS, load_tokenizer, make_config
from training.run import load

RATE = OUTPUT_HZ
FRAME = RATE * CODEC_FRAME_MS // 1000  # samples of a codec frame
HOP = FRAME // 8  # samples of a mel frame
CODEC_STATE = "codec.pt"  # file in the folder of a training run


class LogMel(nn.Module):
    """Log-mel spectrogram: [B, samples] -> [B, bands, samples // hop]."""

    filters: Tensor
    window: Tensor

    def __init__(self, n_fft: int = 1024, hop: int = HOP, bands: int = 80):
        super().__init__()
        self.n_fft, self.hop = n_fft, hop
        filters = mel_filter_bank(n_fft // 2 + 1, bands, 0.0, RATE / 2, RATE, norm="slaney", mel_scale="slaney")
        self.register_buffer("filters", torch.from_numpy(filters).float().T, persistent=False)
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)

    def forward(self, samples: Tensor) -> Tensor:
        """Compute the output of the class."""
        return self.log(self.magnitudes(samples)[..., : samples.shape[-1] // self.hop])

    def magnitudes(self, samples: Tensor) -> Tensor:
        """Return the magnitudes of the spectrum, [B, bins, frames]."""
        spectrum = torch.stft(
            samples, self.n_fft, self.hop, window=self.window, center=True, pad_mode="reflect", return_complex=True
        )
        return (spectrum.real.square() + spectrum.imag.square() + 1e-10).sqrt()

    def log(self, magnitudes: Tensor) -> Tensor:
        """Return the log-mel of magnitudes."""
        return torch.log(torch.clamp(self.filters @ magnitudes, min=1e-4))


class ChannelNorm(nn.LayerNorm):
    """Layer norm of each step of [B, channels, T]: a frame's code must not depend on the sentence's length."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Compute the output of the class."""
        return super().forward(hidden.transpose(1, 2)).transpose(1, 2)


class Residual(nn.Module):
    """A dilated convolution with a residual connection, [B, channels, T]."""

    def __init__(self, channels: int, dilation: int):
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.conv = nn.Conv1d(channels, channels, 3, padding=dilation, dilation=dilation)
        self.out = nn.Conv1d(channels, channels, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        """Compute the output of the class."""
        return hidden + self.out(F.gelu(self.conv(F.gelu(self.norm(hidden)))))


class Encoder(nn.Module):
    """Encoder: [B, samples] at 24 kHz -> latents [B, frames, latent] at 12.5 Hz."""

    def __init__(self, latent: int, channels: int = 192):
        super().__init__()
        self.log_mel = LogMel()
        self.layers = nn.Sequential(
            nn.Conv1d(80, channels, 5, padding=2),
            Residual(channels, 1),
            nn.Conv1d(channels, channels, 4, stride=2, padding=1),
            Residual(channels, 1),
            Residual(channels, 3),
            nn.Conv1d(channels, channels, 4, stride=2, padding=1),
            Residual(channels, 1),
            Residual(channels, 3),
            nn.Conv1d(channels, channels, 4, stride=2, padding=1),
            Residual(channels, 1),
            ChannelNorm(channels),
            nn.Conv1d(channels, latent, 1),
        )

    def forward(self, samples: Tensor) -> Tensor:
        """Compute the output of the class."""
        return self.layers((self.log_mel(samples) + 5.0) / 3.0).transpose(1, 2)


class Quantized(NamedTuple):
    """The quantizer's output."""

    latent: Tensor  # [B, T, latent], with a straight-through gradient
    codes: Tensor  # [B, T, books]
    commitment: Tensor


class ResidualQuantizer(nn.Module):
    """Codebooks learned by moving averages; an unused entry is replaced by a latent of the batch."""

    entries: Tensor  # [books, entries, latent]
    counts: Tensor  # [books, entries]
    sums: Tensor  # [books, entries, latent]
    started: Tensor  # [books]

    def __init__(self, books: int, entries: int, latent: int, decay: float = 0.98):
        super().__init__()
        self.decay = decay
        self.register_buffer("entries", torch.randn(books, entries, latent) / math.sqrt(latent))
        self.register_buffer("counts", torch.ones(books, entries))
        self.register_buffer("sums", self.entries.clone())
        self.register_buffer("started", torch.zeros(books, dtype=torch.bool))

    def encode(self, latent: Tensor) -> Tensor:
        """Return codes [..., books] of latents [..., latent]."""
        residual, codes = latent, []
        for book in self.entries:
            code = torch.cdist(residual.reshape(-1, residual.shape[-1]), book).argmin(-1).reshape(residual.shape[:-1])
            residual = residual - book[code]
            codes.append(code)
        return torch.stack(codes, -1)

    def forward(self, latent: Tensor, keep: int) -> Quantized:
        """Quantize with the first `keep` books; in training mode update the books."""
        flat = latent.reshape(-1, latent.shape[-1])
        residual, total, codes = flat.detach(), torch.zeros_like(flat), []
        for i in range(len(self.entries)):
            if self.training and not self.started[i]:
                self._initialise(i, residual)
            code = torch.cdist(residual, self.entries[i]).argmin(-1)
            chosen = self.entries[i][code]
            if self.training:
                self._update(i, residual, code)
            if i < keep:
                total = total + chosen
            residual = residual - chosen
            codes.append(code)
        straight = flat + (total - flat).detach()
        shape = latent.shape
        return Quantized(
            straight.reshape(shape), torch.stack(codes, -1).reshape(*shape[:-1], -1), F.mse_loss(flat, total.detach())
        )

    @torch.no_grad()
    def _initialise(self, i: int, residual: Tensor) -> None:
        chosen = residual[torch.randint(len(residual), (self.entries.shape[1],))]
        self.entries[i] = chosen + 0.01 * residual.std() * torch.randn_like(chosen)
        self.sums[i] = self.entries[i]
        self.started[i] = True

    @torch.no_grad()
    def _update(self, i: int, residual: Tensor, code: Tensor) -> None:
        hot = F.one_hot(code, self.entries.shape[1]).to(residual.dtype)
        self.counts[i].mul_(self.decay).add_(hot.sum(0), alpha=1 - self.decay)
        self.sums[i].mul_(self.decay).add_(hot.T @ residual, alpha=1 - self.decay)
        dead = self.counts[i] < 0.02
        if dead.any():
            replacement = residual[torch.randint(len(residual), (int(dead.sum()),))]
            self.sums[i][dead], self.counts[i][dead] = replacement, 1.0
        self.entries[i] = self.sums[i] / self.counts[i].unsqueeze(-1)


class SpectralLoss(nn.Module):
    """Distance of waveforms [B, samples]: log-mel at four resolutions, and spectral convergence (Parallel WaveGAN).

    Mel bands are used because most bins of a linear spectrum are above 3 kHz, where speech is unpredictable noise.
    """

    def __init__(self) -> None:
        super().__init__()
        self.mels = nn.ModuleList(
            LogMel(n_fft, n_fft // 4, bands) for n_fft, bands in ((256, 20), (512, 40), (1024, 80), (2048, 120))
        )

    def forward(self, decoded: Tensor, target: Tensor) -> Tensor:
        """Return the loss, a scalar."""
        total = decoded.new_zeros(())
        for mel in self.mels:
            assert isinstance(mel, LogMel)
            a, b = mel.magnitudes(decoded), mel.magnitudes(target)
            total = total + 0.3 * torch.linalg.norm(b - a) / torch.linalg.norm(b).clamp(min=1e-3)
            total = total + F.l1_loss(mel.log(a), mel.log(b))
        return total / len(self.mels)


class Codec(NamedTuple):
    """Encoder, quantizer and decoder."""

    encoder: Encoder
    quantizer: ResidualQuantizer
    code2wav: Qwen3OmniMoeCode2Wav

    @torch.no_grad()
    def codes(self, samples: Tensor) -> Tensor:
        """Return codes [T, books] of audio [samples], padded with silence to whole frames."""
        samples = F.pad(samples, (0, -len(samples) % FRAME))
        return self.quantizer.encode(self.encoder(samples[None]))[0]

    def embed_codebooks(self) -> None:
        """Copy the codebooks times the number of books into code2wav's embeddings: code2wav uses their mean."""
        entries = self.quantizer.entries * CODEBOOKS
        self.code2wav.code_embedding.weight.data = entries.flatten(0, 1).clone()


def make_codec(work: Path) -> Codec:
    """Create an untrained codec, with PyTorch's initial convolutions: transformers' are nearly silent."""
    code2wav = Qwen3OmniMoeCode2Wav._from_config(make_config(load_tokenizer(work)).code2wav_config)
    for module in code2wav.modules():
        if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
            module.reset_parameters()
    for name, parameter in code2wav.named_parameters():
        if name.endswith(("gamma", "_layer_scale.scale")):
            parameter.data.fill_(0.1)
    hidden = code2wav.config.hidden_size
    return Codec(Encoder(hidden), ResidualQuantizer(CODEBOOKS, CODEBOOK, hidden), code2wav)


def load_codec(work: Path) -> Codec:
    """Return the trained codec in evaluation mode, with the codebooks in code2wav's embeddings."""
    codec = make_codec(work)
    load(work / CODEC_STATE, **codec._asdict())
    codec.embed_codebooks()
    for part in codec:
        part.eval()
    return codec
