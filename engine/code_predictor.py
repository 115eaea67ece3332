"""The code predictor: a talker's hidden state and a frame's first code -> the frame's other 15 codes.

Two that give the same codes: torch's, which CUDA captures as a graph, and ONNX Runtime's, which takes a CPU a sixth of
the time (the loop's operations are too small for torch's overhead).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.layer import Places, make_layer, norm, rotations
from engine.sampler import RESIDUAL_TOP_K, residual_params, sample


class Frame(NamedTuple):
    """A codec frame."""

    codes: Tensor  # [B, 16] int64
    embedding: Tensor  # [B, H'], the sum of the codes' embeddings: the talker's next input


class CodePredictor(Protocol):
    """Completes codec frames."""

    def __call__(self, hidden: Tensor, first: Tensor, temperature: Tensor | None, uniforms: Tensor | None) -> Frame:
        """The talker's hidden states [B, H'], codes of the first codebook [B] -> frames.

        Greedy without `temperature`; else a row samples where its temperature [B] is above 0, with `uniforms` [B, 15].
        """


class TorchCodePredictor:
    """`Qwen3OmniMoeTalkerCodePredictorModelForConditionalGeneration` (transformers 5.20.2), its loop without a cache
    object: it begins anew with every frame, so all rows are always in step.
    """

    def __init__(self, talker: Any, rows: int):
        """`rows`: of the largest batch."""
        self._embed_first = talker.model.codec_embedding
        predictor = talker.code_predictor
        self._model, self._heads = predictor.model, list(predictor.lm_head)
        self._tables = list(predictor.model.codec_embedding)
        self._layers = [make_layer(layer) for layer in self._model.layers]
        first = self._layers[0]
        self._key_heads, self._groups = first.key_heads, first.heads // first.key_heads
        positions = talker.config.num_code_groups
        self._cache = self._model.norm.weight.new_zeros(
            len(self._layers), rows, 2 * first.key_heads, positions, first.head_size
        )  # keys, then values
        self._cos, self._sin = rotations(self._model, positions)
        device = self._cache.device
        self._slots = torch.arange(rows, device=device)  # a row's own
        self._indices = torch.arange(positions, device=device).expand(rows, -1)

    def __call__(self, hidden: Tensor, first: Tensor, temperature: Tensor | None, uniforms: Tensor | None) -> Frame:
        """As `CodePredictor`."""
        embedding = self._embed_first(first)
        total, codes = embedding, [first]
        inputs = torch.stack([hidden, embedding], dim=1)  # [B, 2, H']
        position = 0
        for step, (head, table) in enumerate(zip(self._heads, self._tables, strict=True)):
            logits = head(self._forward(inputs, position)).float()
            position += inputs.shape[1]
            if temperature is None or uniforms is None:
                code = logits.argmax(dim=-1)
            else:
                code = sample(logits, residual_params(temperature), uniforms[:, step], RESIDUAL_TOP_K)
            embedding = table(code)
            total = total + embedding
            codes.append(code)
            inputs = embedding[:, None]
        return Frame(torch.stack(codes, dim=1), total)

    def _forward(self, inputs: Tensor, start: int) -> Tensor:
        """Appends [B, T, H] at positions `start`..., and may write into it; returns the last hidden state [B, H]."""
        batch, length, _ = inputs.shape
        end = start + length
        cos, sin = (table[start:end].expand(batch, -1, -1, -1) for table in (self._cos, self._sin))
        places = Places(self._slots[:batch], self._indices[:batch, start:end], cos, sin)
        hidden = inputs
        for layer, cache in zip(self._layers, self._cache[:, :batch], strict=True):
            queries = layer.project(hidden, places, cache)
            keys, values = cache[:, : self._key_heads, :end], cache[:, self._key_heads :, :end]
            if length == 1:  # a key head's queries as positions: the fast kernels want as many of one as of the other
                folded = queries[:, 0].unflatten(1, (self._key_heads, self._groups))
                attended = F.scaled_dot_product_attention(folded, keys, values, scale=layer.scale).flatten(1)[:, None]
            else:  # only ever at the start
                attended = F.scaled_dot_product_attention(
                    queries.transpose(1, 2), keys, values, is_causal=True, scale=layer.scale, enable_gqa=True
                )
                attended = attended.transpose(1, 2).flatten(2)
            hidden = layer.finish(hidden, attended)
        return norm(hidden[:, -1], self._model.norm)


class OnnxCodePredictor:
    """The graphs that `export/code_predictor.py` writes, run by ONNX Runtime in one thread."""

    def __init__(self, folder: Path):
        """`folder` holds `greedy.onnx` and `sampling.onnx`."""
        import onnxruntime  # a GPU's engine needs none

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._greedy, self._sampling = (
            onnxruntime.InferenceSession(str(folder / f"{name}.onnx"), options, ["CPUExecutionProvider"])
            for name in ("greedy", "sampling")
        )

    def __call__(self, hidden: Tensor, first: Tensor, temperature: Tensor | None, uniforms: Tensor | None) -> Frame:
        """As `CodePredictor`."""
        feed = {"HIDDEN": hidden, "FIRST": first}
        session = self._greedy
        if temperature is not None and uniforms is not None:
            session, feed = self._sampling, {**feed, "TEMPERATURE": temperature, "UNIFORMS": uniforms}
        codes, embedding = session.run(None, {name: tensor.numpy() for name, tensor in feed.items()})
        return Frame(torch.from_numpy(codes), torch.from_numpy(embedding))
