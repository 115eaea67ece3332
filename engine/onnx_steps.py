"""A decoder's steps of single positions on a CPU, with one ONNX graph between each two attentions.

The operations of such a step are small, so torch's overhead dominates. Attention remains torch's and reads the keys and
values of the slots in place, so a conversation's bits do not depend on the other rows of its batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from engine.layer import is_dense
from engine.onnx_builder import FLOAT, OnnxBuilder


class Projected(NamedTuple):
    """Input of a layer's attention, and the residual stream."""

    hidden: Tensor  # [R, H], residual stream
    queries: Tensor  # [R, heads, D]
    keys_values: Tensor  # [R, 2 * key heads, D]


class OnnxSteps:
    """Graphs of one decoder in float32: `first`, then `between` for each layer except the last, then `last`."""

    def __init__(self, model: Any):
        """Build the graphs of transformers' text model `model`, for which `possible` is true."""
        layers, norm = list(model.layers), model.norm
        self._sessions = [_session(_first(layers[0]))]
        self._sessions += [_session(_between(before, after)) for before, after in pairwise(layers)]
        self._sessions.append(_session(_last(layers[-1], norm)))

    @staticmethod
    def possible(model: Any) -> bool:
        """Return whether a model is in float32 on a CPU and computes all experts of its mixtures (`is_dense`)."""
        weight = model.norm.weight
        fits = weight.device.type == "cpu" and weight.dtype == torch.float32
        return fits and all(is_dense(layer.mlp) for layer in model.layers)

    def first(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> Projected:
        """Return the first layer's projections of hidden [R, H]; cos and sin [R, 1, D] are the rows' rotations."""
        feed = {"HIDDEN": hidden.numpy(), "COS": cos.numpy(), "SIN": sin.numpy()}
        queries, keys_values = self._sessions[0].run(None, feed)
        return Projected(hidden, torch.from_numpy(queries), torch.from_numpy(keys_values))

    def between(self, number: int, hidden: Tensor, attended: Tensor, cos: Tensor, sin: Tensor) -> Projected:
        """Complete layer `number` with attended [R, heads * D] and return the next layer's projections."""
        feed = {"HIDDEN": hidden.numpy(), "ATTENDED": attended.numpy(), "COS": cos.numpy(), "SIN": sin.numpy()}
        return Projected(*map(torch.from_numpy, self._sessions[number + 1].run(None, feed)))

    def last(self, hidden: Tensor, attended: Tensor) -> Tensor:
        """Complete the last layer and return its normed hidden states [R, H]."""
        feed = {"HIDDEN": hidden.numpy(), "ATTENDED": attended.numpy()}
        return torch.from_numpy(self._sessions[-1].run(None, feed)[0])


def onnx_products(weights: Sequence[Tensor]) -> Callable[[Mapping[int, Tensor]], list[Tensor]]:
    """Return a function that multiplies rows, [N, in] by their size `in`, by weights [out, in] with ONNX Runtime."""
    builder = OnnxBuilder()
    for number, weight in enumerate(weights):
        builder.name(builder.linear(f"ROWS{weight.shape[1]}", f"weight{number}", weight), f"PRODUCT{number}")
    sizes = {weight.shape[1] for weight in weights}
    session = _session(
        builder.model(
            "products",
            {f"ROWS{size}": (FLOAT, [size]) for size in sizes},
            {f"PRODUCT{number}": (FLOAT, [len(weight)]) for number, weight in enumerate(weights)},
        )
    )

    def multiply(rows: Mapping[int, Tensor]) -> list[Tensor]:
        feed = {f"ROWS{size}": values.numpy() for size, values in rows.items()}
        return [torch.from_numpy(product) for product in session.run(None, feed)]

    return multiply


def _sizes(layer: Any) -> dict[str, Any]:
    attention = layer.self_attn
    size = attention.head_dim
    return {
        "HIDDEN": (FLOAT, [attention.q_proj.weight.shape[1]]),
        "ATTENDED": (FLOAT, [attention.q_proj.weight.shape[0]]),
        "COS": (FLOAT, [1, size]),
        "SIN": (FLOAT, [1, size]),
        "QUERIES": (FLOAT, [attention.q_proj.weight.shape[0] // size, size]),
        "KEYS_VALUES": (FLOAT, [2 * attention.k_proj.weight.shape[0] // size, size]),
    }


def _first(layer: Any) -> Any:
    builder, sizes = OnnxBuilder(), _sizes(layer)
    _name_projections(builder, "HIDDEN", layer)
    return builder.model(
        "first",
        {name: sizes[name] for name in ("HIDDEN", "COS", "SIN")},
        {name: sizes[name] for name in ("QUERIES", "KEYS_VALUES")},
    )


def _between(before: Any, after: Any) -> Any:
    builder, sizes = OnnxBuilder(), _sizes(before)
    hidden = builder.finish("HIDDEN", "ATTENDED", before, "before")
    builder.name(hidden, "NEW_HIDDEN")
    _name_projections(builder, hidden, after)
    outputs = {"NEW_HIDDEN": sizes["HIDDEN"], "QUERIES": sizes["QUERIES"], "KEYS_VALUES": sizes["KEYS_VALUES"]}
    return builder.model("between", {name: sizes[name] for name in ("HIDDEN", "ATTENDED", "COS", "SIN")}, outputs)


def _last(layer: Any, norm: Any) -> Any:
    builder, sizes = OnnxBuilder(), _sizes(layer)
    hidden = builder.finish("HIDDEN", "ATTENDED", layer, "last")
    builder.name(builder.norm(hidden, "norm", norm.weight, norm.variance_epsilon), "NEW_HIDDEN")
    return builder.model(
        "last", {name: sizes[name] for name in ("HIDDEN", "ATTENDED")}, {"NEW_HIDDEN": sizes["HIDDEN"]}
    )


def _name_projections(builder: OnnxBuilder, hidden: str, layer: Any) -> None:
    queries, keys, values = builder.project(hidden, layer, "after", "COS", "SIN")
    builder.name(queries, "QUERIES")
    builder.name(builder.op("Concat", keys, values, axis=1), "KEYS_VALUES")


def _session(model: Any) -> Any:
    import onnxruntime  # not installed for a GPU-only engine

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
