"""Base class of the modules that become ONNX: named tensors, and states that Triton carries from tick to tick."""

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
    below: float | None = None  # exclusive upper bound of the values, from 0; None: unbounded

    def zeros(self, batch: int) -> Tensor:
        """Return [batch, *dims] of zeros, which is also the initial value of a state."""
        return torch.zeros(batch, *self.dims, dtype=self.dtype)


class StatefulModule(nn.Module):
    """A module `forward(*inputs, *states) -> (*outputs, *new_states)` without state between calls.

    The input of a state `x` is `x`, its output `new_x`: Triton pairs them by their position in two sorted maps, and a
    prefix keeps the two orders equal, while a suffix can change one of them.
    """

    inputs: tuple[TensorSpec, ...]
    states: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...]

    def zero_states(self, batch: int) -> tuple[Tensor, ...]:
        """Return the initial states of `batch` conversations."""
        return tuple(state.zeros(batch) for state in self.states)

    @property
    def input_names(self) -> list[str]:
        """Names of inputs and states, in the order of `forward`."""
        return [spec.name for spec in (*self.inputs, *self.states)]

    @property
    def output_names(self) -> list[str]:
        """Names of outputs and new states, in the order of `forward`."""
        return [spec.name for spec in self.outputs] + ["new_" + spec.name for spec in self.states]
