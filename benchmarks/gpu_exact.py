"""On a CUDA machine: kernels against torch, graphs against none, the random model against transformers.

    python -m benchmarks.gpu_exact

Prints what it found and ends with status 1 when anything differs. The tests do the same on the CPU.
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
SHAPES = [(1, 1, 32, 4, 128), (64, 1, 32, 4, 128), (7, 4, 16, 2, 128), (2, 40, 4, 2, 16)]  # as in the kernel's test
BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 2e-2}  # of values of order one; bfloat16 has 8 bits
LAYER_BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 1e-2}  # relative


def kernel_difference(dtype: torch.dtype) -> float:
    """Greatest difference from float64 attention over all shapes."""
    differences = []
    for rows, length, heads, key_heads, size in SHAPES:
        cache = torch.randn(rows + 2, 2 * key_heads, 3000, size, device="cuda", dtype=dtype)
        queries = torch.randn(rows, length, heads, size, device="cuda", dtype=dtype)
        starts = torch.randint(0, 3000 - length, (rows,), device="cuda")
        slots = torch.randperm(rows + 2, device="cuda")[:rows]
        found = KernelAttention(CachePositions(slots, starts), length)(queries, cache, size**-0.5).unflatten(
            2, (heads, size)
        )
        keys, values = cache[slots].double().chunk(2, dim=1)
        positions = starts[:, None] + torch.arange(length, device="cuda")
        visible = torch.arange(3000, device="cuda") <= positions[:, None, :, None]
        expected = F.scaled_dot_product_attention(
            queries.double().transpose(1, 2), keys, values, attn_mask=visible, scale=size**-0.5, enable_gqa=True
        ).transpose(1, 2)
        differences.append((found.double() - expected).abs().max())
    return float(torch.stack(differences).max())  # NaN where there is one


def layer_differences(dtype: torch.dtype) -> tuple[float, float]:
    """Relative errors of a full-size layer as the engine has it on CUDA, and of torch's operations in its place.

    Against the latter in float32; the worst of a thinker's, a talker's and a code predictor's, for few rows and many.
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
        plain, reference = Layer(deepcopy(part.layers[0])), Layer(exact.layers[0])  # with transformers' own experts
        fused = FusedLayer(part.layers[0])
        for rows, length in ((1, 1), (1, 4), (64, 1), (40, 7)):
            indices = torch.randint(0, 90, (rows, 1), device="cuda") + torch.arange(length, device="cuda")
            hidden = torch.randn(rows, length, exact.norm.weight.shape[0], device="cuda", dtype=dtype)
            outputs = []
            for each, of, kind in ((reference, exact, torch.float32), (fused, part, dtype), (plain, part, dtype)):
                cos, sin = (table[indices] for table in rotations(of, 100))
                slots = torch.arange(rows, device="cuda").flip(0)
                cache = torch.zeros(rows, 2 * each.key_heads, 100, each.head_size, device="cuda", dtype=kind)
                queries = each.project(hidden.to(kind), CacheTargets(slots, indices, cos, sin), cache)
                after = each.finish(hidden.to(kind).clone(), queries.flatten(2))
                outputs.append([tensor.float() for tensor in (queries, cache, after)])
            for which in (0, 1):
                for found, expected in zip(outputs[1 + which], outputs[0], strict=True):
                    errors[which].append((found - expected).norm() / expected.norm())
    return float(torch.stack(errors[0]).max()), float(torch.stack(errors[1]).max())  # NaN where there is one


def speak(checkpoint: Checkpoint, settings: Settings, ticks: Ticks, graphs: bool, **options: object) -> list:
    """Codes and tokens of two conversations, out of step by a tick."""
    changed = settings.with_values(engine={"cuda_graphs": graphs, "slots": 4, "context_s": 3})
    engine: Engine[Any] = Engine(checkpoint, changed)
    engine.warm_up()
    outputs = []
    for number, tick in enumerate(ticks):
        if number < 2:
            engine.open(number, engine.parse_options({"seed": number, **options}))
        outputs += tick_all(engine, dict.fromkeys(range(min(number + 1, 2)), tick))
    return [(output.tokens, output.codes.tolist()) for output in outputs]


def among(engine: Engine[Any], ticks: Ticks, others: int) -> list:
    """Codes and tokens of one conversation, in the company of others that say something else."""
    for key in range(others + 1):
        temperature = 0.9 if key else 0.0
        options = {"seed": key, "temperature": temperature, "text_temperature": temperature}
        engine.open(key, engine.parse_options(options))
    found = []
    for number, tick in enumerate(ticks):
        inputs: dict[Hashable, TickInput]
        inputs = {key: ticks[(number + 5 * key) % len(ticks)] for key in range(1, others + 1)}
        output = tick_all(engine, {**inputs, 0: tick})[0]  # results come by slot, and it has the first
        found.append((output.tokens, output.codes.tolist()))
    for key in range(others + 1):
        engine.close(key)
    return found


def tick_all(engine: Engine[Any], inputs: dict[Hashable, TickInput]) -> list[TickOutput]:
    """One tick; an error of any conversation ends the program."""
    results = list(engine.tick(inputs).values())
    for result in results:
        if isinstance(result, Exception):
            raise result
    return [result for result in results if isinstance(result, TickOutput)]


def turns_equal(checkpoint: Checkpoint, settings: Settings, pcm: np.ndarray, graphs: bool) -> bool:
    """Two turns in the dialect `turn`, among other conversations, against `generate()` from raw samples on."""
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
        oracle.hear(np.concatenate([ticks[number % len(ticks)].pcm for number in range(length)]))
        expected = oracle.answer(tokens, frames, settings.sampling.repetition_penalty)
        equal &= emitted == expected.tokens and torch.equal(torch.cat(codes, dim=1), expected.codes)
        oracle.say([token for token in emitted if token != checkpoint.tokenizer.eos_token_id])
    return equal


def main() -> int:
    """Runs all of it; 0 when all is equal."""
    torch.manual_seed(0)
    torch.backends.cudnn.allow_tf32 = False
    wrong = 0
    for dtype, bound in BOUNDS.items():
        difference = kernel_difference(dtype)
        wrong += not difference < bound
        print(f"kernel, {dtype}: differs from float64 attention by {difference:.1e}, at most {bound:g}")
    for dtype, bound in LAYER_BOUNDS.items():
        fused, plain = layer_differences(dtype)
        wrong += not fused < bound
        print(
            f"layers, {dtype}: differ from float32 by {fused:.1e}, at most {bound:g}; torch's operations by {plain:.1e}"
        )
    noise = np.random.RandomState(1).randint(-3000, 3000, 30 * 5120)
    pcm = with_knock(noise.astype(np.int16))
    with tempfile.TemporaryDirectory() as folder:
        make_random_checkpoint(Path(folder))
        layer.DENSE_SHARE = 0  # experts as at full size: the tiny ones would be computed all at once
        for name in ("float32", "bfloat16"):
            settings = Settings.load(environ={}).with_values(
                qwen={"device_map": "cuda", "torch_dtype": name}, engine={"dialect": "sca"}, sampling=GREEDY
            )
            checkpoint = load_checkpoint(folder, settings.qwen)
            ticks = stream_inputs(checkpoint.feature_extractor, pcm)[:TICKS]
            for how, options in (("greedy", {}), ("drawing", {"temperature": 0.9, "text_temperature": 0.7})):
                same = speak(checkpoint, settings, ticks, True, **options) == speak(
                    checkpoint, settings, ticks, False, **options
                )
                wrong += not same
                print(f"graphs, {name}, {how}: {'as without' if same else 'DIFFERENT from without'}")
        settings = settings.with_values(qwen={"torch_dtype": "float32"}, engine={"slots": 24})
        checkpoint = load_checkpoint(folder, settings.qwen)
        engine: Engine[Any] = Engine(checkpoint, settings)
        engine.warm_up()
        alone, crowded = (among(engine, ticks, others) for others in (0, 23))
        wrong += alone != crowded
        print(f"random model, float32: {'as' if alone == crowded else 'NOT as'} alone among 23 others")
        engine.open(0, engine.parse_options({"voice": "aiden"}))
        oracle = ScaOracle(checkpoint.model, checkpoint.tokenizer, "aiden")
        official = official_stream(checkpoint.feature_extractor, pcm)
        for number, tick in enumerate(ticks):
            tokens, codes = oracle.tick(official[number])
            (output,) = tick_all(engine, {0: tick})
            if output.tokens != tokens or not torch.equal(output.codes, codes.cpu()):
                wrong += 1
                print(f"random model, float32: tick {number} DIFFERS from transformers")
                break
        else:
            print(f"random model, float32: {TICKS} ticks equal transformers'")
        for graphs in (False, True):
            same = turns_equal(load_checkpoint(folder, settings.qwen), settings, pcm, graphs)
            wrong += not same
            print(f"turns, float32, {'with' if graphs else 'without'} graphs: {'as' if same else 'NOT as'} generate()")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
