"""Convolutions as matrix products, for ONNX Runtime on a GPU.

There it plans every convolution anew when a batch has another size than the one before, even one that it has seen:
code2wav takes 51 to 290 ms then with its heuristics, 311 to 612 without (ONNX Runtime 1.31, one H200). Batches change
with every conversation that speaks or falls silent. Matrix products are not planned, and take 1.6 to 2.3 times as long
as planned convolutions: 15 ms where those take 7, 113 where they take 63.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ConvProduct(nn.Module):
    """A `Conv1d` of stride 1 without padding, dense or of single channels, by its taps side by side."""

    def __init__(self, conv: Any):
        super().__init__()
        plain = conv.stride == (1,) and conv.padding == (0,) and conv.padding_mode == "zeros" and conv.bias is not None
        if not plain or conv.groups not in (1, conv.in_channels):
            raise ValueError(
                f"{conv} cannot be a product: expected stride 1, no padding, a bias, all channels or single ones"
            )
        self.in_channels: int = conv.in_channels
        self.offsets = [tap * conv.dilation[0] for tap in range(conv.kernel_size[0])]
        self.separate = conv.groups > 1
        taps = conv.weight.transpose(1, 2)  # [out, K, in]
        self.weight = _frozen(taps.transpose(0, 1).contiguous() if self.separate else taps.flatten(1))
        self.bias = _frozen(conv.bias[:, None])

    def forward(self, signal: Tensor) -> Tensor:
        """[B, in, T + span] -> [B, out, T]."""
        length = signal.shape[2] - self.offsets[-1]
        taps = [signal[:, :, offset : offset + length] for offset in self.offsets]
        if self.separate:
            return torch.stack([tap * weight for tap, weight in zip(taps, self.weight, strict=True)]).sum(0) + self.bias
        return self.weight @ torch.cat(taps, dim=1) + self.bias


class TransposedProduct(nn.Module):
    """A `ConvTranspose1d` whose kernel is a multiple of its stride, by the inputs that a stretch of outputs sees."""

    def __init__(self, conv: Any):
        super().__init__()
        self.rate: int = conv.stride[0]
        self.seen, rest = divmod(conv.kernel_size[0], self.rate)
        plain = conv.padding == (0,) and conv.output_padding == (0,) and conv.dilation == (1,) and conv.bias is not None
        if rest or not plain or conv.groups != 1:
            raise ValueError(f"{conv} cannot be a product: expected a kernel of whole strides, a bias, nothing else")
        self.in_channels: int = conv.in_channels
        parts = conv.weight.unflatten(2, (self.seen, self.rate))  # [in, out, seen, rate]
        self.weight = _frozen(parts.permute(1, 3, 2, 0).flatten(0, 1).flatten(1))  # [out * rate, seen * in]
        self.bias = _frozen(conv.bias[:, None])

    def forward(self, signal: Tensor) -> Tensor:
        """[B, in, T] -> [B, out, (T + seen - 1) * rate]."""
        inputs = torch.cat([F.pad(signal, (place, self.seen - 1 - place)) for place in range(self.seen)], dim=1)
        outputs = (self.weight @ inputs).unflatten(1, (-1, self.rate)).transpose(2, 3)  # [B, out, T', rate]
        return outputs.flatten(2) + self.bias


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach(), requires_grad=False)


def as_products(module: Any) -> Any:
    """The module, its convolutions replaced in place."""
    kinds = {nn.Conv1d: ConvProduct, nn.ConvTranspose1d: TransposedProduct}
    for name, child in module.named_children():
        kind = kinds.get(type(child))
        if kind:
            setattr(module, name, kind(child))
        else:
            as_products(child)
    return module
