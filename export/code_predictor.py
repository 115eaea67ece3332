"""The code predictor as one ONNX graph with unrolled steps, greedy or sampling, for the engine on a CPU.

The operations of the loop are small, so torch spends most of a frame's time on dispatch. The engine runs the graph in
place of `TorchCodePredictor` (engine/code_predictor.py), with the same codes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import torch

from engine.code_predictor import OnnxCodePredictor, TorchCodePredictor
from engine.onnx_builder import FLOAT, INT64, OnnxBuilder
from engine.sampler import RESIDUAL_TOP_K, RESIDUAL_TOP_P
from export.onnx_stage import ExportError

CHECKED_FRAMES = 64
EMBEDDING_TOLERANCE = 1e-4  # tolerance of a sum of 16 embeddings: some float32 rounding errors


def export_code_predictor(talker: Any, folder: Path) -> float:
    """Write `greedy.onnx` and `sampling.onnx`, and compare both to torch on random frames.

    Returns the maximum difference of an embedding. Raises `ExportError` if codes differ, or an embedding by more than
    `EMBEDDING_TOLERANCE`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, samples in (("greedy", False), ("sampling", True)):
        model = _Graph(talker).build(samples)
        onnx.checker.check_model(model)
        onnx.save(model, folder / f"{name}.onnx")
    return _compare(talker, folder)


@torch.inference_mode()
def _compare(talker: Any, folder: Path) -> float:
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(CHECKED_FRAMES, talker.config.text_config.hidden_size, generator=random)
    first = torch.randint(0, talker.code_predictor.vocab_size, (CHECKED_FRAMES,), generator=random)
    temperature = (torch.arange(CHECKED_FRAMES) % 2).float()
    uniforms = torch.rand(CHECKED_FRAMES, talker.config.num_code_groups - 1, generator=random)
    ours, torchs = OnnxCodePredictor(folder), TorchCodePredictor(talker, CHECKED_FRAMES)
    worst = 0.0
    for name, sampling in (("greedy", (None, None)), ("sampling", (temperature, uniforms))):
        found, expected = ours(hidden, first, *sampling), torchs(hidden, first, *sampling)
        equal = (found.codes == expected.codes).all(dim=1)
        if equal.sum() < CHECKED_FRAMES - 1:  # one frame may depend on the last bit of two logits
            raise ExportError(f"{folder / name}.onnx: codes of {int((~equal).sum())} frames differ from torch's")
        worst = max(worst, float((found.embedding - expected.embedding)[equal].abs().max()))
    if not worst <= EMBEDDING_TOLERANCE:
        raise ExportError(f"{folder}: embeddings differ by {worst:.1e}, expected at most {EMBEDDING_TOLERANCE:g}")
    return worst


class _Graph(OnnxBuilder):
    """Builder of `Qwen3OmniMoeTalkerCodePredictorModelForConditionalGeneration` (transformers 5.20.2) as a graph."""

    def __init__(self, talker: Any):
        super().__init__()
        self._talker, self._predictor = talker, talker.code_predictor
        self._layers = list(self._predictor.model.layers)
        attention = self._layers[0].self_attn
        self._head_dim: int = attention.head_dim
        self._key_heads = attention.k_proj.weight.shape[0] // self._head_dim
        self._steps: int = talker.config.num_code_groups - 1
        cos, sin = self._predictor.model.rotary_emb(torch.ones(1), torch.arange(self._steps + 1)[None])
        half = self._head_dim // 2
        self._cos, self._sin = cos[0], torch.cat([-sin[0, :, :half], sin[0, :, half:]], dim=1)  # [16, D]

    def build(self, samples: bool) -> Any:
        """Build the whole model.

        Inputs: HIDDEN [B, H'], FIRST [B]; if it samples, also TEMPERATURE [B] and UNIFORMS [B, 15]. Outputs: CODES
        [B, 16] and EMBEDDING [B, H'], the sum of the codes' embeddings.
        """
        table = self.constant("first_table", self._talker.model.codec_embedding.weight)
        embedding = total = self.op("Gather", table, "FIRST")
        codes = ["FIRST"]
        keys: list[str] = [""] * len(self._layers)
        values: list[str] = [""] * len(self._layers)
        self._position("HIDDEN", 0, keys, values)
        for step, head in enumerate(self._predictor.lm_head):
            hidden = self._position(embedding, step + 1, keys, values)
            logits = self.linear(hidden, f"head{step}", head.weight)
            code = self._sample(logits, step) if samples else self.op("ArgMax", logits, axis=-1, keepdims=0)
            codes.append(code)
            table = self.constant(f"table{step}", self._predictor.model.codec_embedding[step].weight)
            embedding = self.op("Gather", table, code)
            total = self.op("Add", total, embedding)
        columns = [self.op("Unsqueeze", code, self.integers(1)) for code in codes]
        self.name(self.op("Concat", *columns, axis=1), "CODES")
        self.name(total, "EMBEDDING")
        size, count = self._talker.config.text_config.hidden_size, self._steps
        inputs: dict[str, Any] = {"HIDDEN": (FLOAT, [size]), "FIRST": (INT64, [])}
        if samples:
            inputs |= {"TEMPERATURE": (FLOAT, []), "UNIFORMS": (FLOAT, [count])}
        return self.model("code_predictor", inputs, {"CODES": (INT64, [count + 1]), "EMBEDDING": (FLOAT, [size])})

    def _position(self, x: str, position: int, keys: list[str], values: list[str]) -> str:
        """Add one position [B, H'] through all layers, append its keys and values, and return the normed output."""
        cos = self.constant(f"cos{position}", self._cos[position])
        sin = self.constant(f"sin{position}", self._sin[position])
        for index, layer in enumerate(self._layers):
            scale = layer.self_attn.scaling
            query, key, value = self.project(x, layer, f"layer{index}", cos, sin, scale)
            query = self.op("Reshape", query, self.integers(0, self._key_heads, -1, self._head_dim))
            key, value = self.op("Unsqueeze", key, self.integers(3)), self.op("Unsqueeze", value, self.integers(2))
            if position:
                key = self.op("Concat", keys[index], key, axis=3)  # [B, key heads, D, n]
                value = self.op("Concat", values[index], value, axis=2)  # [B, key heads, n, D]
            keys[index], values[index] = key, value
            if position == 0 and index == len(self._layers) - 1:
                return ""  # no code is predicted from the first position
            weights = self.op("Softmax", self.op("MatMul", query, key), axis=-1)
            attended = self.op("Reshape", self.op("MatMul", weights, value), self.integers(0, -1))
            x = self.finish(x, attended, layer, f"layer{index}")
        norm = self._predictor.model.norm
        return self.norm(x, "norm", norm.weight, norm.variance_epsilon)

    def _sample(self, logits: str, step: int) -> str:
        """Sample as `engine.sampler.sample` with `residual_params`, but sort only the likeliest codes."""
        count = min(RESIDUAL_TOP_K, self._predictor.vocab_size)
        ordered, order = self.outputs("TopK", 2, logits, self.integers(count), axis=-1)
        column, last = self.integers(1), self.integers(-1)
        zero, axis = self.number(0.0), self.constant("axis", torch.tensor(1))
        greedy = self.op("Equal", "TEMPERATURE", zero)
        temperature = self.op("Unsqueeze", self.op("Where", greedy, self.number(1.0), "TEMPERATURE"), column)
        likeliest = self.op("Slice", ordered, self.integers(0), column, column)
        scores = self.op("Div", self.op("Sub", ordered, likeliest), temperature)
        probabilities = self.op("Softmax", scores, axis=-1)
        before = self.op("Sub", self.op("CumSum", probabilities, axis), probabilities)
        kept = self.op("Less", before, self.number(RESIDUAL_TOP_P))
        probabilities = self.op("Where", kept, probabilities, zero)
        cumulative = self.op("CumSum", probabilities, axis)
        total = self.op("Slice", cumulative, last, self.integers(count), column)
        uniform = self.op("Slice", "UNIFORMS", self.integers(step), self.integers(step + 1), column)
        passed = self.op("LessOrEqual", cumulative, self.op("Mul", uniform, total))
        index = self.op("ReduceSum", self.op("Cast", passed, to=INT64), column, keepdims=1)
        possible = self.op("Cast", self.op("Greater", probabilities, zero), to=INT64)
        max_index = self.op("Sub", self.op("ReduceSum", possible, column, keepdims=1), column)
        sampled = self.op("GatherElements", order, self.op("Min", index, max_index), axis=1)
        first = self.op("Slice", order, self.integers(0), column, column)
        chosen = self.op("Where", self.op("Unsqueeze", greedy, column), first, sampled)
        return self.op("Squeeze", chosen, column)
