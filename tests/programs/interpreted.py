"""The CUDA kernels in the interpreter of their language, on the CPU, compared with the CPU's own computation.

`TRITON_INTERPRET=1 python interpreted.py CHECKPOINT kernels|ticks`: a separate program, because the interpreter is
chosen when a kernel is defined.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch

from config import Settings
from engine import attention_kernel, code_predictor, decoder, layer
from engine.attention import CachePositions, CpuAttention
from engine.attention_kernel import KernelAttention
from engine.checkpoint import load_checkpoint
from engine.decoder import Decoder
from engine.engine import Engine
from engine.experts_kernel import KernelExperts
from engine.fused_layer import FusedLayer, FusedMixture
from engine.layer import CacheTargets, Layer, rotations
from engine.onnx_steps import OnnxSteps
from engine.tick import TickInput

CAPACITY = 512
SHAPES = [  # rows, new positions, query heads, key heads, head size, programs of the device
    (1, 1, 4, 2, 16, 264),
    (4, 1, 4, 2, 16, 264),
    (3, 4, 8, 2, 32, 264),
    (1, 40, 4, 2, 16, 264),
    (2, 4, 32, 4, 128, 264),
    (4, 1, 16, 4, 16, 16),  # as many programs as rows and key heads: the keys are not split
]


def expert_differences(model: Any) -> list[float]:
    """Return the maximum differences of the experts' kernels from transformers' experts, in thinker and talker."""
    layer.DENSE_SHARE = 0  # sparse experts, as in the full-size model
    found = []
    for mlp in (model.thinker.model.layers[0].mlp, model.talker.model.layers[1].mlp):
        fused = FusedMixture(mlp)
        for tokens in (1, 5, 40):  # 40 tokens use blocks of pairs
            x, hidden = torch.randn(tokens, 64), torch.randn(tokens, 64)
            expected = hidden + mlp(x[:, None])[:, 0]
            fused.add_to(hidden, x)
            found.append(float((hidden - expected).abs().max()))
        x, hidden = torch.randn(70, 64), torch.randn(70, 64)
        chosen, weights = torch.full((70, 2), 3), torch.rand(70, 2)
        chosen[:, 1] = torch.arange(70) % 2  # one expert has all tokens, most have none
        expected = hidden + mlp.experts(x, chosen, weights)
        grouped = hidden.clone()
        KernelExperts(mlp.experts).add_to(hidden, x, chosen, weights)
        KernelExperts(mlp.experts).add_grouped(grouped, x, chosen, weights)
        found += [float((each - expected).abs().max()) for each in (hidden, grouped)]
    return found


def layer_differences(model: Any) -> list[float]:
    """Return the maximum differences of a fused layer from a plain one: queries, cache, hidden states."""
    found = []
    for decoder_model, length in (
        (model.thinker.model, 1),
        (model.talker.model, 3),
        (model.talker.code_predictor.model, 2),
    ):
        plain, fused = Layer(decoder_model.layers[0]), FusedLayer(decoder_model.layers[0])
        cos, sin = rotations(decoder_model, 50)
        indices = torch.tensor([[4], [0], [40]]) + torch.arange(length)
        targets = CacheTargets(torch.tensor([2, 0, 3]), indices, cos[indices], sin[indices])
        hidden = torch.randn(3, length, 64)
        caches = torch.zeros(2, 4, 2 * plain.key_heads, 50, plain.head_size)
        queries = [each.project(hidden, targets, cache) for each, cache in zip((plain, fused), caches, strict=True)]
        after = [each.finish(hidden.clone(), queries[0].flatten(2)) for each in (plain, fused)]
        found += [float((one - other).abs().max()) for one, other in (queries, caches, after)]
    return found


def attention_differences() -> list[float]:
    """Return the maximum difference between the two implementations of attention, for each shape."""
    torch.manual_seed(0)
    found = []
    for rows, length, heads, key_heads, size, attention_kernel.PROGRAMS in SHAPES:
        cache = torch.randn(rows + 4, 2 * key_heads, CAPACITY, size)
        starts = torch.randint(0, CAPACITY - length, (rows,))
        starts[0] = 0
        slots = torch.randperm(rows + 3)[:rows].sort().values
        positions = CachePositions.of(slots.tolist(), starts.tolist(), torch.device("cpu"))
        packed = torch.randn(rows, length, heads + 2 * key_heads, size)
        queries = packed[:, :, :heads]  # not contiguous, as in the engine
        by_kernel = KernelAttention(positions, length)(queries, cache, size**-0.5)
        by_torch = CpuAttention(positions, length, CAPACITY, heads // key_heads)(queries, cache, size**-0.5)
        found.append(float((by_kernel - by_torch).abs().max()))
    return found


def ticks(checkpoint_folder: str, kernel: bool) -> list[torch.Tensor]:
    """Return codes of two conversations that started in different ticks, with or without the kernels."""
    settings = Settings.load(environ={}).with_values(engine={"context_s": 5, "dialect": "sca"})
    if kernel:
        OnnxSteps.possible = staticmethod(lambda _: False)  # type: ignore[method-assign]
        attention_kernel.PROGRAMS = 16  # two splits; more would be slow, because the interpreter runs one at a time
        decoder.make_layer = code_predictor.make_layer = FusedLayer
        Decoder._attention = lambda _, positions, length: KernelAttention(positions, length)  # type: ignore[method-assign]
    engine = Engine(load_checkpoint(checkpoint_folder, settings.qwen), settings)
    noise = torch.rand(3, 128, settings.audio.mel_frames, generator=torch.Generator().manual_seed(1)) * 4 - 2
    inputs = [TickInput(log_mel, np.zeros(settings.audio.input_samples, np.int16)) for log_mel in noise]
    greedy = {"temperature": 0.0, "text_temperature": 0.0}
    engine.open("a", engine.parse_options(greedy))
    outputs = [engine.tick({"a": inputs[0]})["a"]]
    engine.open("b", engine.parse_options({"system_prompt": "Be kind.", **greedy}))
    outputs += engine.tick({"a": inputs[1], "b": inputs[2]}).values()
    return [output.codes for output in outputs]


if __name__ == "__main__":
    folder, part = sys.argv[1:]
    if part == "kernels":
        print("attention", attention_differences())
        model = load_checkpoint(folder, Settings.load(environ={}).qwen).model
        print("layers", layer_differences(model))
        print("experts", expert_differences(model))
    else:
        expected, found = (ticks(folder, kernel) for kernel in (False, True))
        print("codes equal", all(torch.equal(one, other) for one, other in zip(found, expected, strict=True)))
