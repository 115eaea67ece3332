"""Declaration of a module for optimum: inputs and outputs with their dynamic axes, and dummy inputs."""

from __future__ import annotations

from typing import Any

import torch
from optimum.exporters.base import ExporterConfig
from optimum.utils import DummyInputGenerator, NormalizedConfig

from export.stateful_module import StatefulModule, TensorSpec

BATCH = {0: "batch"}
DUMMY_BATCH = 2


class DummyTick(DummyInputGenerator):
    """Generator of random inputs and states of one tick, determined by the seed."""

    def __init__(self, task: str, stage: NormalizedConfig, seed: int = 0, **_: Any):
        self._specs = {spec.name: spec for spec in (*stage.config.inputs, *stage.config.states)}
        self._random = torch.Generator().manual_seed(seed)

    def supports_input(self, input_name: str) -> bool:
        """Return whether the stage has an input or a state of this name."""
        return input_name in self._specs

    def generate(
        self, input_name: str, framework: str = "pt", int_dtype: str = "int64", float_dtype: str = "fp32"
    ) -> torch.Tensor:
        """Return [2, *dims], uniform below the tensor's bound; without one, integers below 500 or normal draws."""
        spec: TensorSpec = self._specs[input_name]
        shape = (DUMMY_BATCH, *spec.dims)
        if not spec.dtype.is_floating_point:
            return torch.randint(0, int(spec.below or 500), shape, generator=self._random).to(spec.dtype)
        if spec.below is not None:
            return (torch.rand(shape, generator=self._random) * spec.below).to(spec.dtype)
        return torch.randn(shape, generator=self._random).abs().to(spec.dtype)


class OnnxConfig(ExporterConfig):
    """Exporter config of a `StatefulModule`."""

    NORMALIZED_CONFIG_CLASS = NormalizedConfig
    DUMMY_INPUT_GENERATOR_CLASSES = (DummyTick,)

    def __init__(self, stage: StatefulModule):
        super().__init__(stage, task="feature-extraction")

    @property
    def inputs(self) -> dict[str, dict[int, str]]:
        """Dynamic axes of inputs and states: only the batch."""
        return dict.fromkeys(self._config.input_names, BATCH)

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        """Dynamic axes of outputs and new states: only the batch."""
        return dict.fromkeys(self._config.output_names, BATCH)
