"""Exactness on a CUDA machine: kernels against torch, graphs against eager mode, random model against transformers.

    python -m benchmarks.gpu_exact

Prints each comparison and ends with status 1 if any differs. The tests do the same comparisons on the CPU.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Hashable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.engine import GREEDY
from benchmarks.full_size import full_checkpoint, full_config
from config import Settings
from contract.controls import Controls
from engine import layer
from engine.attention import CachePositions
from engine.attention_kernel import KernelAttention
from engine.checkpoint import Checkpoint, load_checkpoint
from engine.engine import Engine
from engine.fused_layer import FusedLayer
from engine.layer import CacheTargets, Layer, rotations
from engine.tick import TickInput, TickOutput
from export.random_checkpoint import make_random_checkpoint
from tests.oracle import ScaOracle
from tests.sound import official_stream, stream_inputs, with_knock
from tests.turn_oracle import TurnOracle

TICKS = 12
Ticks = Sequence[TickInput]
SHAPES = [
    (1, 1, 32, 4, 128),
    (64, 1, 32, 4, 128),
    (7, 4, 16, 2, 128),
    (2, 40, 4, 2, 16),
]  # rows, length, heads, key heads, head size
BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 2e-2}  # absolute error of values around one; bfloat16 has 8 bits
LAYER_BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 1e-2}  # relative error


def kernel_difference(dtype: torch.dtype) -> float:
    """Return the maximum difference from float64 attention over all shapes."""
    differences = []
    for rows, length, heads, key_heads, size in SHAPES:
        cache = torch.randn(rows + 2, 2 * key_heads, 3000, size, device="cuda", dtype=dtype)
        queries = torch.randn(rows, length, heads, size, device="cuda", dtype=dtype)
        starts = torch.randint(0, 3000 - length, (rows,), device="cuda")
        slots = torch.randperm(rows + 2, device="cuda")[:rows]
        attention = KernelAttention(CachePositions(slots, starts), length)
        output = attention(queries, cache, size**-0.5).unflatten(2, (heads, size))
        keys, values = cache[slots].double().chunk(2, dim=1)
        positions = starts[:, None] + torch.arange(length, device="cuda")
        visible = torch.arange(3000, device="cuda") <= positions[:, None, :, None]
        expected = F.scaled_dot_product_attention(
            queries.double().transpose(1, 2), keys, values, attn_mask=visible, scale=size**-0.5, enable_gqa=True
        ).transpose(1, 2)
        differences.append((output.double() - expected).abs().max())
    return float(torch.stack(differences).max())  # NaN if any is NaN


def layer_differences(dtype: torch.dtype) -> tuple[float, float]:
    """Return the relative errors of the engine's fused full-size layer and of torch's operations, against float32.

    Each is the maximum over a layer of thinker, talker and code predictor, for few rows and many.
    """
    config = full_config()
    predictor = config.talker_config.code_predictor_config
    for part in (config.thinker_config.text_config, config.talker_config.text_config, predictor):
        part.num_hidden_layers = 1
    config.thinker_config.audio_config.encoder_layers = 1
    model = full_checkpoint("cuda", dtype, config).model
    errors: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    for part in (model.thinker.model, model.talker.model, model.talker.code_predictor.model):
        exact = deepcopy(part).float()
        plain, reference = Layer(deepcopy(part.layers[0])), Layer(exact.layers[0])  # transformers' own experts
        fused = FusedLayer(part.layers[0])
        for rows, length in ((1, 1), (1, 4), (64, 1), (40, 7)):
            indices = torch.randint(0, 90, (rows, 1), device="cuda") + torch.arange(length, device="cuda")
            hidden = torch.randn(rows, length, exact.norm.weight.shape[0], device="cuda", dtype=dtype)
            outputs = []
            for each, module, kind in ((reference, exact, torch.float32), (fused, part, dtype), (plain, part, dtype)):
                cos, sin = (table[indices] for table in rotations(module, 100))
                slots = torch.arange(rows, device="cuda").flip(0)
                cache = torch.zeros(rows, 2 * each.key_heads, 100, each.head_size, device="cuda", dtype=kind)
                queries = each.project(hidden.to(kind), CacheTargets(slots, indices, cos, sin), cache)
                after = each.finish(hidden.to(kind).clone(), queries.flatten(2))
                outputs.append([tensor.float() for tensor in (queries, cache, after)])
            for which in (0, 1):
                for output, expected in zip(outputs[1 + which], outputs[0], strict=True):
                    errors[which].append((output - expected).norm() / expected.norm())
    return float(torch.stack(errors[0]).max()), float(torch.stack(errors[1]).max())  # NaN if any is NaN


def speak(checkpoint: Checkpoint, settings: Settings, ticks: Ticks, graphs: bool, **options: object) -> list:
    """Return tokens and codes of two conversations, the second of which starts a tick later."""
    changed = settings.with_values(engine={"cuda_graphs": graphs, "slots": 4, "context_s": 3})
    engine: Engine[Any] = Engine(checkpoint, changed)
    engine.warm_up()
    outputs = []
    for number, tick in enumerate(ticks):
        if number < 2:
            engine.open(number, engine.parse_options({"seed": number, **options}))
        outputs += tick_all(engine, dict.fromkeys(range(min(number + 1, 2)), tick))
    return [(output.tokens, output.codes.tolist()) for output in outputs]


def with_others(engine: Engine[Any], ticks: Ticks, others: int) -> list:
    """Return tokens and codes of one conversation, with `others` further conversations in its batch."""
    for key in range(others + 1):
        temperature = 0.9 if key else 0.0
        options = {"seed": key, "temperature": temperature, "text_temperature": temperature}
        engine.open(key, engine.parse_options(options))
    outputs = []
    for number, tick in enumerate(ticks):
        inputs: dict[Hashable, TickInput]
        inputs = {key: ticks[(number + 5 * key) % len(ticks)] for key in range(1, others + 1)}
        output = tick_all(engine, {**inputs, 0: tick})[0]  # results are in the order of slots
        outputs.append((output.tokens, output.codes.tolist()))
    for key in range(others + 1):
        engine.close(key)
    return outputs


def tick_all(engine: Engine[Any], inputs: dict[Hashable, TickInput]) -> list[TickOutput]:
    """Run one tick. Raises the first error of a conversation."""
    results = list(engine.tick(inputs).values())
    for result in results:
        if isinstance(result, Exception):
            raise result
    return [result for result in results if isinstance(result, TickOutput)]


def turns_equal(checkpoint: Checkpoint, settings: Settings, pcm: np.ndarray, graphs: bool) -> bool:
    """Compare two turns of the dialect `turn`, batched with others, with `generate()` from raw samples on."""
    tokens, frames = 20, 40
    limits = {"detection": "manual", "answer_tokens": tokens, "answer_frames": frames}
    changed = settings.with_values(
        engine={"dialect": "turn", "slots": 4, "cuda_graphs": graphs},
        turn=limits,
        sampling={"temperature": 0.0, "text_temperature": 0.0},
    )
    engine: Engine[Any] = Engine(checkpoint, changed)
    engine.warm_up()
    oracle = TurnOracle(checkpoint, "aiden")
    ticks = stream_inputs(checkpoint.feature_extractor, pcm)
    for key in range(3):
        engine.open(key, engine.parse_options({"voice": "aiden", "seed": key}))
    equal = True
    for length in (9, 30):
        emitted, codes = [], []
        for number in range(length + frames // 4 + tokens // 4 + 2):
            controls = Controls(listen=number == 0, commit=number == length - 1)
            inputs: dict[Hashable, TickInput] = {
                key: ticks[(number + key) % len(ticks)]._replace(controls=controls) for key in range(3)
            }
            output = tick_all(engine, inputs)[0]
            emitted += output.tokens
            codes.append(output.codes[:, output.codes[0] >= 0])
        oracle.add_user_turn(np.concatenate([ticks[number % len(ticks)].pcm for number in range(length)]))
        expected = oracle.answer(tokens, frames, settings.sampling.repetition_penalty)
        equal &= emitted == expected.tokens and torch.equal(torch.cat(codes, dim=1), expected.codes)
        oracle.add_answer([token for token in emitted if token != checkpoint.tokenizer.eos_token_id])
    return equal


def main() -> int:
    """Run every comparison; return 0 if all are equal."""
    torch.manual_seed(0)
    torch.backends.cudnn.allow_tf32 = False
    wrong = 0
    for dtype, bound in BOUNDS.items():
        difference = kernel_difference(dtype)
        wrong += not difference < bound
        print(f"kernel, {dtype}: differs from float64 attention by {difference:.1e}, limit {bound:g}")
    for dtype, bound in LAYER_BOUNDS.items():
        fused, plain = layer_differences(dtype)
        wrong += not fused < bound
        print(
            f"layers, {dtype}: differ from float32 by {fused:.1e}, limit {bound:g}; torch's operations by {plain:.1e}"
        )
    noise = np.random.RandomState(1).randint(-3000, 3000, 30 * 5120)
    pcm = with_knock(noise.astype(np.int16))
    with tempfile.TemporaryDirectory() as folder:
        make_random_checkpoint(Path(folder))
        layer.DENSE_SHARE = 0  # sparse experts as at full size: tiny ones would be computed densely
        for name in ("float32", "bfloat16"):
            settings = Settings.load(environ={}).with_values(
                qwen={"device_map": "cuda", "torch_dtype": name}, engine={"dialect": "sca"}, sampling=GREEDY
            )
            checkpoint = load_checkpoint(folder, settings.qwen)
            ticks = stream_inputs(checkpoint.feature_extractor, pcm)[:TICKS]
            for sampling, options in (("greedy", {}), ("sampled", {"temperature": 0.9, "text_temperature": 0.7})):
                same = speak(checkpoint, settings, ticks, True, **options) == speak(
                    checkpoint, settings, ticks, False, **options
                )
                wrong += not same
                print(f"graphs, {name}, {sampling}: {'equal to' if same else 'DIFFERENT from'} eager mode")
        settings = settings.with_values(qwen={"torch_dtype": "float32"}, engine={"slots": 24})
        checkpoint = load_checkpoint(folder, settings.qwen)
        engine: Engine[Any] = Engine(checkpoint, settings)
        engine.warm_up()
        single, batched = (with_others(engine, ticks, others) for others in (0, 23))
        wrong += single != batched
        print(f"random model, float32, with 23 others: {'equal to' if single == batched else 'DIFFERENT from'} without")
        engine.open(0, engine.parse_options({"voice": "aiden"}))
        oracle = ScaOracle(checkpoint.model, checkpoint.tokenizer, "aiden")
        official = official_stream(checkpoint.feature_extractor, pcm)
        for number, tick in enumerate(ticks):
            tokens, codes = oracle.tick(official[number])
            (output,) = tick_all(engine, {0: tick})
            if output.tokens != tokens or not torch.equal(output.codes, codes.cpu()):
                wrong += 1
                print(f"random model, float32: tick {number} DIFFERENT from transformers")
                break
        else:
            print(f"random model, float32: {TICKS} ticks equal to transformers")
        for graphs in (False, True):
            same = turns_equal(load_checkpoint(folder, settings.qwen), settings, pcm, graphs)
            wrong += not same
            mode = "CUDA graphs" if graphs else "eager mode"
            print(f"turns, float32, {mode}: {'equal to' if same else 'DIFFERENT from'} generate()")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
