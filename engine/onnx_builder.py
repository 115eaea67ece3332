"""Builder of ONNX graphs node by node, with a transformer's modules in forms that ONNX Runtime fuses.

torch's exporter needs half a minute to trace the unrolled steps; writing their nodes takes less than a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, cat, tensor

OPSET = 18


class OnnxBuilder:
    """Nodes and constants of one graph. A method that adds nodes returns the name of their result."""

    def __init__(self) -> None:
        self._nodes: list[Any] = []
        self._constants: dict[str, Any] = {}

    def model(self, name: str, inputs: dict[str, tuple[int, Sequence[int]]], outputs: dict[str, Any]) -> Any:
        """Return the ONNX model. `inputs` and `outputs`: element type and dims without the batch, by name."""

        def declare(tensors: dict[str, tuple[int, Sequence[int]]]) -> list[Any]:
            return [
                helper.make_tensor_value_info(tensor, kind, ["batch", *dims])
                for tensor, (kind, dims) in tensors.items()
            ]

        graph = helper.make_graph(self._nodes, name, declare(inputs), declare(outputs), [*self._constants.values()])
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output."""
        return self.outputs(kind, 1, *inputs, **attributes)[0]

    def outputs(self, kind: str, count: int, *inputs: str, **attributes: Any) -> list[str]:
        """Add a node with `count` outputs."""
        names = [f"{kind.lower()}{len(self._nodes)}_{i}" for i in range(count)]
        self._nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names

    def name(self, result: str, name: str) -> None:
        """Declare a result as an output of the graph called `name`."""
        self._nodes.append(helper.make_node("Identity", [result], [name]))

    def integers(self, *values: int) -> str:
        """Add a constant list of integers."""
        return self.constant("i" + "_".join(map(str, values)), tensor(values))

    def number(self, value: float) -> str:
        """Add a constant float32."""
        return self.constant(f"f{value!r}", tensor(value))

    def constant(self, name: str, value: Tensor) -> str:
        """Add a constant called `name`, unless the graph has it."""
        if name not in self._constants:
            array = np.ascontiguousarray(value.detach().numpy())
            self._constants[name] = numpy_helper.from_array(array, name)
        return name

    def split(self, x: str, sizes: Sequence[int], axis: int) -> list[str]:
        """Split x into pieces of `sizes` along `axis`."""
        return self.outputs("Split", len(sizes), x, self.integers(*sizes), axis=axis)

    def linear(self, x: str, name: str, weight: Tensor) -> str:
        """Multiply x [B, in] by a weight [out, in]: [B, out]."""
        return self.op("MatMul", x, self.constant(name, weight.T))

    def norm(self, x: str, name: str, weight: Tensor, eps: float) -> str:
        """Apply RMS norm over the last dimension."""
        square = self.op("Pow", x, self.number(2.0))
        mean = self.op("ReduceMean", square, self.integers(-1), keepdims=1)
        root = self.op("Sqrt", self.op("Add", mean, self.number(eps)))
        return self.op("Mul", self.op("Div", x, root), self.constant(name, weight))

    def project(self, x: str, layer: Any, name: str, cos: str, sin: str, scale: float = 1.0) -> tuple[str, str, str]:
        """Compute a decoder layer's queries [B, heads, D], times `scale`, and keys and values [B, key heads, D].

        `x` is [B, H]. `sin` is [D] or [B, 1, D] with its first half negated, as `engine.layer.rotations` returns it.
        """
        attention = layer.self_attn
        size = attention.head_dim
        heads, key_heads = (proj.weight.shape[0] // size for proj in (attention.q_proj, attention.k_proj))
        normed = self.norm(x, f"{name}.in_norm", layer.input_layernorm.weight, layer.input_layernorm.variance_epsilon)
        weights = [proj.weight for proj in (attention.q_proj, attention.k_proj, attention.v_proj)]
        packed = self.linear(normed, f"{name}.qkv", cat(weights))
        by_head = self.op("Reshape", packed, self.integers(0, -1, size))
        rotating, values = self.split(by_head, [heads + key_heads, key_heads], axis=1)
        head_norm = cat(
            [attention.q_norm.weight.expand(heads, -1) * scale, attention.k_norm.weight.expand(key_heads, -1)]
        )
        rotating = self.norm(rotating, f"{name}.head_norm", head_norm, attention.q_norm.variance_epsilon)
        first, second = self.split(rotating, [size // 2, size // 2], axis=2)
        swapped = self.op("Concat", second, first, axis=2)
        rotated = self.op("Add", self.op("Mul", rotating, cos), self.op("Mul", swapped, sin))
        queries, keys = self.split(rotated, [heads, key_heads], axis=1)
        return queries, keys, values

    def finish(self, x: str, attended: str, layer: Any, name: str) -> str:
        """Complete a decoder layer [B, H] from its input x [B, H] and its attention's result [B, heads * D]."""
        x = self.op("Add", x, self.linear(attended, f"{name}.out", layer.self_attn.o_proj.weight))
        norm = layer.post_attention_layernorm
        normed = self.norm(x, f"{name}.out_norm", norm.weight, norm.variance_epsilon)
        mixture = hasattr(layer.mlp, "experts")
        forward = self.mixture if mixture else self.gated_mlp
        return self.op("Add", x, forward(normed, layer.mlp, f"{name}.mlp"))

    def gated_mlp(self, x: str, mlp: Any, name: str) -> str:
        """Apply a gated feed-forward network that computes gate and up in one product."""
        packed = self.linear(x, f"{name}.gate_up", cat([mlp.gate_proj.weight, mlp.up_proj.weight]))
        size = mlp.gate_proj.weight.shape[0]
        return self.linear(self._gated(packed, size), f"{name}.down", mlp.down_proj.weight)

    def mixture(self, x: str, mlp: Any, name: str) -> str:
        """Apply all experts of a small mixture, weighted by the router, and the talker's shared expert."""
        router, experts = mlp.gate, mlp.experts
        count, inner = experts.down_proj.shape[0], experts.down_proj.shape[2]
        probabilities = self.op("Softmax", self.linear(x, f"{name}.router", router.weight), axis=-1)
        weights, chosen = self.outputs("TopK", 2, probabilities, self.integers(router.top_k), axis=-1)
        if getattr(router, "norm_topk_prob", True):
            weights = self.op("Div", weights, self.op("ReduceSum", weights, self.integers(-1), keepdims=1))
        zeros = self.op("Mul", probabilities, self.number(0.0))
        routing = self.op("ScatterElements", zeros, chosen, weights, axis=1)  # [B, E]
        gate, up = experts.gate_up_proj.chunk(2, dim=1)  # [E, I, H] each
        packed = self.linear(x, f"{name}.experts_in", cat([gate.flatten(0, 1), up.flatten(0, 1)]))
        by_expert = self.op("Reshape", self._gated(packed, count * inner), self.integers(0, count, inner))
        routed = self.op("Mul", by_expert, self.op("Unsqueeze", routing, self.integers(2)))
        flat = self.op("Reshape", routed, self.integers(0, -1))
        out = self.linear(flat, f"{name}.experts_out", experts.down_proj.transpose(0, 1).flatten(1))
        if not hasattr(mlp, "shared_expert"):
            return out
        weighted = self.op("Mul", x, self.constant(f"{name}.shared_gate", mlp.shared_expert_gate.weight))
        score = self.op("Sigmoid", self.op("ReduceSum", weighted, self.integers(-1), keepdims=1))
        shared = self.gated_mlp(x, mlp.shared_expert, f"{name}.shared")
        return self.op("Add", out, self.op("Mul", score, shared))

    def _gated(self, packed: str, size: int) -> str:
        gate, up = self.split(packed, [size, size], axis=1)
        return self.op("Mul", self.op("Mul", gate, self.op("Sigmoid", gate)), up)


FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
