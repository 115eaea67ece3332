"""Convolutions as matrix products, for ONNX Runtime on a GPU.

ONNX Runtime's CUDA provider plans all convolutions again whenever the batch size changes, even to one that it has
planned before: such a step of code2wav takes 51 to 290 ms with its heuristics, 311 to 612 ms without (ONNX Runtime
1.31, one H200). The batch size changes whenever a conversation starts or stops to speak. Matrix products need no plan;
they take 1.6 to 2.3 times as long as planned convolutions: 15 ms instead of 7, 113 ms instead of 63.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ConvProduct(nn.Module):
    """A `Conv1d` of stride 1 without padding, dense or depthwise, as a product with the concatenated taps."""

    def __init__(self, conv: Any):
        super().__init__()
        plain = conv.stride == (1,) and conv.padding == (0,) and conv.padding_mode == "zeros" and conv.bias is not None
        if not plain or conv.groups not in (1, conv.in_channels):
            raise ValueError(
                f"{conv} cannot be a product: expected stride 1, no padding, a bias, one group or depthwise"
            )
        self.in_channels: int = conv.in_channels
        self.offsets = [tap * conv.dilation[0] for tap in range(conv.kernel_size[0])]
        self.is_depthwise = conv.groups > 1
        taps = conv.weight.transpose(1, 2)  # [out, K, in]
        self.weight = _frozen(taps.transpose(0, 1).contiguous() if self.is_depthwise else taps.flatten(1))
        self.bias = _frozen(conv.bias[:, None])

    def forward(self, signal: Tensor) -> Tensor:
        """Map [B, in, T + span] to [B, out, T]."""
        length = signal.shape[2] - self.offsets[-1]
        taps = [signal[:, :, offset : offset + length] for offset in self.offsets]
        if self.is_depthwise:
            return torch.stack([tap * weight for tap, weight in zip(taps, self.weight, strict=True)]).sum(0) + self.bias
        return self.weight @ torch.cat(taps, dim=1) + self.bias


class TransposedProduct(nn.Module):
    """A `ConvTranspose1d` whose kernel is a multiple of its stride, as a product with each output frame's inputs."""

    def __init__(self, conv: Any):
        super().__init__()
        self.rate: int = conv.stride[0]
        self.seen, rest = divmod(conv.kernel_size[0], self.rate)
        plain = conv.padding == (0,) and conv.output_padding == (0,) and conv.dilation == (1,) and conv.bias is not None
        if rest or not plain or conv.groups != 1:
            raise ValueError(
                f"{conv} cannot be a product: expected a kernel of whole strides and a bias, no padding or dilation"
            )
        self.in_channels: int = conv.in_channels
        parts = conv.weight.unflatten(2, (self.seen, self.rate))  # [in, out, seen, rate]
        self.weight = _frozen(parts.permute(1, 3, 2, 0).flatten(0, 1).flatten(1))  # [out * rate, seen * in]
        self.bias = _frozen(conv.bias[:, None])

    def forward(self, signal: Tensor) -> Tensor:
        """Map [B, in, T] to [B, out, (T + seen - 1) * rate]."""
        inputs = torch.cat([F.pad(signal, (shift, self.seen - 1 - shift)) for shift in range(self.seen)], dim=1)
        outputs = (self.weight @ inputs).unflatten(1, (-1, self.rate)).transpose(2, 3)  # [B, out, T', rate]
        return outputs.flatten(2) + self.bias


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach(), requires_grad=False)


def as_products(module: Any) -> Any:
    """Replace the convolutions of a module in place, and return it."""
    kinds = {nn.Conv1d: ConvProduct, nn.ConvTranspose1d: TransposedProduct}
    for name, child in module.named_children():
        kind = kinds.get(type(child))
        if kind:
            setattr(module, name, kind(child))
        else:
            as_products(child)
    return module
