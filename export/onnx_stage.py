"""Export of a stage to model.onnx, and its comparison to torch."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch

from export.onnx_config import OnnxConfig
from export.stateful_module import StatefulModule

OPSET = 18  # the newest opset that torch 2.13 exports without a conversion
CHECK_TICKS = 3


class ExportError(RuntimeError):
    """An exported graph does not compute what its torch module computes."""


def export_onnx(
    stage: StatefulModule, path: Path, tolerances: dict[str, float], reference: StatefulModule | None = None
) -> dict[str, float]:
    """Write `stage` to `path`, and compare it to `reference` (default: `stage`) on the same ticks.

    `tolerances` holds the maximum absolute difference of each output. Returns the differences found; raises
    `ExportError` if one exceeds its tolerance.
    """
    declaration = OnnxConfig(stage)
    example = tuple(declaration.generate_dummy_inputs().values())
    path.parent.mkdir(parents=True, exist_ok=True)
    with torch.no_grad(), _quiet():
        torch.onnx.export(
            stage,
            example,
            path,
            input_names=list(declaration.inputs),
            output_names=list(declaration.outputs),
            dynamic_shapes=tuple({0: torch.export.Dim("batch")} for _ in declaration.inputs),
            opset_version=OPSET,
            dynamo=True,
            external_data=_is_large(stage),
            verbose=False,
        )
    onnx.checker.check_model(str(path), full_check=not _is_large(stage))
    return compare(reference or stage, path, tolerances)


def compare(stage: StatefulModule, path: Path, tolerances: dict[str, float]) -> dict[str, float]:
    """Return the maximum absolute difference of each output over `CHECK_TICKS` of a stream; both carry their states.

    Raises `ExportError` if one exceeds its tolerance.
    """
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    states = stage.zero_states(batch=2)
    onnx_states = [state.numpy() for state in states]
    differences = dict.fromkeys(tolerances, 0.0)
    for tick in range(CHECK_TICKS):
        dummies = OnnxConfig(stage).generate_dummy_inputs(seed=tick)
        inputs = [dummies[spec.name] for spec in stage.inputs]
        with torch.no_grad():
            expected = stage(*inputs, *states)
        feed = dict(zip(stage.input_names, [*(i.numpy() for i in inputs), *onnx_states], strict=True))
        found = session.run(stage.output_names, feed)
        states, onnx_states = expected[len(stage.outputs) :], found[len(stage.outputs) :]
        for name, ours, theirs in zip(stage.output_names, found, expected, strict=True):
            if name in differences:
                difference = np.abs(ours.astype(np.float64) - theirs.numpy().astype(np.float64)).max()
                differences[name] = max(differences[name], float(difference))
    for name, difference in differences.items():
        if not difference <= tolerances[name]:
            raise ExportError(
                f"{path}: {name} differs from torch by {difference:.2e}, expected at most {tolerances[name]:.0e}"
            )
    return differences


def _is_large(stage: StatefulModule) -> bool:
    """Return whether the weights need a separate file: a protobuf holds at most 2 GB."""
    return sum(p.numel() * p.element_size() for p in stage.parameters()) > 1_500_000_000


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the exporter's log: it concerns the code of torch, not the model."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
