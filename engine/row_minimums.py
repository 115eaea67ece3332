"""Minimum numbers of rows of a batch on a CPU, measured at start-up, so that a row's bits do not depend on its batch.

A library may choose another kernel for a matrix product of few rows, which sums in another order. From which number of
rows on the kernel stays the same depends on the library and on the processor. A product that is padded to this number
gives a row the same bits in any batch. torch and ONNX Runtime have separate minimums, because padding whole decoding
steps to torch's minimum would multiply the cost of a small batch (see docs/exactness.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.onnx_steps import OnnxSteps, onnx_products

Products = Callable[[Mapping[int, Tensor]], list[Tensor]]  # rows [N, in] by their size `in` -> each product [N, out]
# Sums of torch's other operations may also depend on the batch if a product needs padding, so 4 is the minimum there.
TORCH_CANDIDATES = (4, 8, 16, 32)
ONNX_CANDIDATES = (1, 2, *TORCH_CANDIDATES)
MAX_ROWS = 64  # rows of the products with which smaller ones are compared


@dataclass(frozen=True)
class RowMinimums:
    """Minimum numbers of rows. The defaults, for CUDA, pad nothing."""

    products: int = 1  # rows of a matrix product of torch
    steps: int = 1  # rows of a batch that decodes one position per row

    @classmethod
    def measure(cls, model: Any) -> RowMinimums:
        """Return the minimums for transformers' Qwen3-Omni on its device."""
        if model.device.type != "cpu":
            return cls()
        thinker, talker = model.thinker, model.talker
        decoders = (thinker.model, talker.model)
        modules = (*decoders, thinker.lm_head, talker.codec_head, talker.text_projection, talker.code_predictor)
        weights = matrices(parameter for module in modules for parameter in module.parameters())
        products = min_rows(torch_products(weights), weights, TORCH_CANDIDATES)
        if not all(OnnxSteps.possible(decoder) for decoder in decoders):
            return cls(products, steps=products)
        return cls(products, steps=min_rows(onnx_products(weights), weights, ONNX_CANDIDATES))

    def rows_of(self, positions: int) -> int:
        """Return the minimum rows of a batch whose products have `positions` rows for each row of the batch."""
        return -(-self.products // positions)

    def apply(self, module: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Apply a module of torch to x [N, in], padded to the minimum of products; return [N, out]."""
        missing = self.products - len(x)
        return module(x) if missing <= 0 else module(F.pad(x, (0, 0, 0, missing)))[: len(x)]


def matrices(weights: Iterable[Tensor]) -> list[Tensor]:
    """Return one matrix [out, in] of each shape among weights, whose experts [experts, out, in] are matrices too."""
    single = (weight[0] if weight.dim() == 3 else weight for weight in weights if len(weight) > 1 and weight.dim() > 1)
    return list({matrix.shape: matrix for matrix in single}.values())


def torch_products(weights: Sequence[Tensor]) -> Products:
    """Return a function that multiplies rows by weights [out, in] with torch."""
    return lambda rows: [F.linear(rows[weight.shape[1]], weight) for weight in weights]


@torch.inference_mode()
def min_rows(products: Products, weights: Sequence[Tensor], candidates: Sequence[int]) -> int:
    """Return the smallest candidate such that products of at least as many rows have the bits of `MAX_ROWS` rows.

    The last candidate is returned if none fulfils this.
    """
    random = torch.Generator().manual_seed(0)
    sizes = sorted({weight.shape[1] for weight in weights})
    rows = {size: torch.randn(MAX_ROWS, size, generator=random).to(weights[0].dtype) for size in sizes}
    expected = products(rows)
    for count in range(MAX_ROWS - 1, candidates[0] - 1, -1):
        found = products({size: values[:count] for size, values in rows.items()})
        if not all(torch.equal(one, other[:count]) for one, other in zip(found, expected, strict=True)):
            return next((candidate for candidate in candidates if candidate > count), candidates[-1])
    return candidates[0]
