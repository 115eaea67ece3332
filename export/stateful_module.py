"""What the modules that become ONNX have in common: named tensors, and states that Triton carries from tick to tick."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class TensorSpec:
    """A tensor of a module, without its batch dimension."""

    name: str
    dtype: torch.dtype
    dims: tuple[int, ...]
    below: float | None = None  # its values are in [0, below); None: any

    def zeros(self, batch: int) -> Tensor:
        """[batch, *dims] of zeros, which is also how a state begins."""
        return torch.zeros(batch, *self.dims, dtype=self.dtype)


class StatefulModule(nn.Module):
    """A module `forward(*inputs, *states) -> (*outputs, *new_states)` that keeps nothing between calls.

    A state `x` goes in as `x` and comes out as `new_x`: Triton pairs the two by their places in two sorted maps, and
    a prefix keeps those in step where a suffix would not.
    """

    inputs: tuple[TensorSpec, ...]
    states: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...]

    def zero_states(self, batch: int) -> tuple[Tensor, ...]:
        """States of `batch` conversations that have not begun."""
        return tuple(state.zeros(batch) for state in self.states)

    @property
    def input_names(self) -> list[str]:
        """Names of all that goes in, in `forward`'s order."""
        return [spec.name for spec in (*self.inputs, *self.states)]

    @property
    def output_names(self) -> list[str]:
        """Names of all that comes out, in `forward`'s order."""
        return [spec.name for spec in self.outputs] + ["new_" + spec.name for spec in self.states]
