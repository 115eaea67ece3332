"""The code predictor: the talker's hidden state and a frame's first code -> the other 15 codes of the frame.

Two implementations return the same codes: torch, which CUDA captures as a graph, and ONNX Runtime, which needs a sixth
of torch's time on a CPU, where torch's overhead per operation dominates.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.layer import CacheTargets, make_layer, norm, rotations
from engine.sampler import RESIDUAL_TOP_K, residual_params, sample


class Frame(NamedTuple):
    """One codec frame of each row."""

    codes: Tensor  # [B, 16] int64
    embedding: Tensor  # [B, H'], sum of the codes' embeddings: the talker's next input


class CodePredictor(Protocol):
    """Interface that completes codec frames."""

    def __call__(self, hidden: Tensor, first: Tensor, temperature: Tensor | None, uniforms: Tensor | None) -> Frame:
        """Complete frames from the talker's hidden states [B, H'] and codes of the first codebook [B].

        Greedy without `temperature`. With it, rows of a temperature [B] above 0 sample with `uniforms` [B, 15].
        """


class TorchCodePredictor:
    """The loop of `Qwen3OmniMoeTalkerCodePredictorModelForConditionalGeneration` (transformers 5.20.2).

    Its key-value cache starts empty for every frame, so all rows are at the same position.
    """

    def __init__(self, talker: Any, rows: int, min_rows: int = 1):
        """Allocate a cache for batches of up to `rows`; pad batches to `min_rows` (see `RowMinimums.products`)."""
        rows = max(rows, min_rows)
        self._min_rows = min_rows
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
        )  # the keys' heads, then the values'
        self._cos, self._sin = rotations(self._model, positions)
        device = self._cache.device
        self._slots = torch.arange(rows, device=device)  # row i uses slot i
        self._indices = torch.arange(positions, device=device).expand(rows, -1)

    def __call__(self, hidden: Tensor, first: Tensor, temperature: Tensor | None, uniforms: Tensor | None) -> Frame:
        """Implement `CodePredictor`."""
        count, missing = len(hidden), self._min_rows - len(hidden)
        if missing > 0:
            hidden, first = F.pad(hidden, (0, 0, 0, missing)), F.pad(first, (0, missing))
            temperature = None if temperature is None else F.pad(temperature, (0, missing))
            uniforms = None if uniforms is None else F.pad(uniforms, (0, 0, 0, missing))
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
        return Frame(torch.stack(codes, dim=1)[:count], total[:count])

    def _forward(self, inputs: Tensor, start: int) -> Tensor:
        """Append inputs [B, T, H] from position `start` on; return the last hidden state [B, H].

        May overwrite `inputs`.
        """
        batch, length, _ = inputs.shape
        end = start + length
        cos, sin = (table[start:end].expand(batch, -1, -1, -1) for table in (self._cos, self._sin))
        targets = CacheTargets(self._slots[:batch], self._indices[:batch, start:end], cos, sin)
        hidden = inputs
        for layer, cache in zip(self._layers, self._cache[:, :batch], strict=True):
            queries = layer.project(hidden, targets, cache)
            keys, values = cache[:, : self._key_heads, :end], cache[:, self._key_heads :, :end]
            if length == 1:  # query heads of a key head as positions, for the fast kernels (see `CpuAttention`)
                folded = queries[:, 0].unflatten(1, (self._key_heads, self._groups))
                attended = F.scaled_dot_product_attention(folded, keys, values, scale=layer.scale).flatten(1)[:, None]
            else:  # the first two positions of a frame
                attended = F.scaled_dot_product_attention(
                    queries.transpose(1, 2), keys, values, is_causal=True, scale=layer.scale, enable_gqa=True
                )
                attended = attended.transpose(1, 2).flatten(2)
            hidden = layer.finish(hidden, attended)
        return norm(hidden[:, -1], self._model.norm)


class OnnxCodePredictor:
    """The graphs of `export/code_predictor.py`, run by ONNX Runtime in one thread."""

    def __init__(self, folder: Path):
        """Load `greedy.onnx` and `sampling.onnx` from `folder`."""
        import onnxruntime  # not installed for a GPU-only engine

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._greedy, self._sampling = (
            onnxruntime.InferenceSession(str(folder / f"{name}.onnx"), options, ["CPUExecutionProvider"])
            for name in ("greedy", "sampling")
        )

    def __call__(self, hidden: Tensor, first: Tensor, temperature: Tensor | None, uniforms: Tensor | None) -> Frame:
        """Implement `CodePredictor`."""
        feed = {"HIDDEN": hidden, "FIRST": first}
        session = self._greedy
        if temperature is not None and uniforms is not None:
            session, feed = self._sampling, {**feed, "TEMPERATURE": temperature, "UNIFORMS": uniforms}
        codes, embedding = session.run(None, {name: tensor.numpy() for name, tensor in feed.items()})
        return Frame(torch.from_numpy(codes), torch.from_numpy(embedding))
