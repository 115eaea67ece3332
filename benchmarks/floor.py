"""Lower bound of a tick's time: its bytes divided by the measured bandwidth of the memory.

`python -m benchmarks.floor BYTES_PER_S OPERATIONS_PER_S` prints the bound of the full-size model in bfloat16, and of
code2wav in the precision that OPERATIONS_PER_S applies to. It needs neither the GPU nor the weights.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen3OmniMoeForConditionalGeneration
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeCode2Wav

from benchmarks.full_size import full_config
from config import Settings
from engine.cache_layout import TALKER_PREFIX
from export.code2wav import Code2Wav

CUDA_COPY, CPU_COPY = 2**32, 2**28  # bytes, several times the size of any cache
COPIES = 10
AUDIO_TOKENS = 110  # tokens of a window of 8 s and of the chat format around it


def bandwidth(device: torch.device) -> float:
    """Return the bytes a second, read and written together, of a large copy: the median of COPIES."""
    cuda = device.type == "cuda"
    source = torch.randint(0, 255, (CUDA_COPY if cuda else CPU_COPY,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(COPIES):
        if cuda:
            torch.cuda.synchronize()
        begun = time.perf_counter()
        target.copy_(source)
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)
    return 2 * source.numel() / sorted(seconds)[COPIES // 2]


def tick_bytes(model: Any, settings: Settings, conversations: int, age_s: float) -> float:
    """Return the bytes that a tick of `conversations` conversations has to read, each once for every use.

    Weights count once a step, experts as even routing reaches them; keys and values are those of conversations of this
    age.
    """
    frames, tokens = settings.audio.codec_frames, settings.engine.text_tokens_per_tick
    thinker, talker = model.thinker, model.talker
    ticks = age_s * 1000 / settings.audio.tick_ms
    position = {part: 2 * _text(part).num_key_value_heads * _text(part).head_dim * model.dtype.itemsize * _depth(part)
                for part in (thinker, talker)}  # fmt: skip
    thinker_keys = conversations * position[thinker] * ticks * (frames + tokens)
    talker_keys = conversations * position[talker] * (TALKER_PREFIX + ticks * frames)

    total = float(_bytes(thinker.audio_tower.parameters()))
    total += _decoder(thinker.model, conversations * frames) + thinker_keys
    total += tokens * (_decoder(thinker.model, conversations) + _bytes(thinker.lm_head.parameters()) + thinker_keys)
    return total + frames * (_frame(talker, conversations) + talker_keys)


def turn_bytes(model: Any, settings: Settings, conversations: int, tokens: int) -> float:
    """Return the bytes of weights of a tick in which a turn of `tokens` tokens ends and `conversations` get answers."""
    thinker, talker = model.thinker, model.talker
    prefill: float = _bytes(thinker.audio_tower.parameters())
    prefill += _decoder(thinker.model, tokens) + _decoder(talker.model, tokens)
    text = _decoder(thinker.model, conversations) + _bytes(thinker.lm_head.parameters())
    return prefill + settings.audio.codec_frames * (text + _frame(talker, conversations))


def _frame(talker: Any, conversations: int) -> float:
    """Return the bytes of weights that a codec frame of `conversations` conversations uses."""
    predictor = talker.code_predictor
    steps = talker.config.num_code_groups - 1
    frame = _decoder(talker.model, conversations) + _bytes(talker.codec_head.parameters())
    return frame + steps * _bytes(predictor.model.layers.parameters()) + _bytes(predictor.lm_head.parameters())


def _decoder(model: Any, tokens: int) -> float:
    """Return the bytes of a decoder's weights that `tokens` tokens use."""
    total = 0.0
    for layer in model.layers:
        experts = _bytes(layer.mlp.experts.parameters())
        missed = (1 - layer.mlp.gate.top_k / layer.mlp.gate.num_experts) ** tokens
        total += _bytes(layer.parameters()) - experts + experts * (1 - missed)
    return total


def _bytes(parameters: Iterable[torch.Tensor]) -> int:
    return sum(parameter.nbytes for parameter in parameters)


def _text(part: Any) -> Any:
    return part.config.text_config


def _depth(part: Any) -> int:
    return int(_text(part).num_hidden_layers)


class Code2WavCost(NamedTuple):
    """Cost of code2wav for one conversation and tick, in addition to the engine."""

    operations: int  # floating-point operations: a multiplication and an addition are two
    state_bytes: int  # states that Triton copies into the stage and out of it, in float32


def code2wav_cost(config: Any, frames: int) -> Code2WavCost:
    """Return the cost of `frames` codec frames a tick, counted by torch on tensors without values."""
    with torch.device("meta"):
        stage = Code2Wav(Qwen3OmniMoeCode2Wav(config), frames)
        codes = torch.zeros(1, config.num_quantizers, frames, dtype=torch.int64)
        begin = torch.zeros(1, 1, dtype=torch.int64)
        states = tuple(torch.zeros(1, *state.dims) for state in stage.states)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            stage.waveform(codes, begin, *states)
    carried = sum(state.numel() * state.element_size() for state in states)
    return Code2WavCost(counter.get_total_flops(), 2 * carried)


def main() -> None:
    """Print the bounds of ticks where all speak (`sca`, 100 s old) or a turn of 8 s ends (`turn`), and of code2wav."""
    bytes_per_s = float(sys.argv[1])
    operations_per_s = float(sys.argv[2])
    torch.set_default_dtype(torch.bfloat16)
    config = full_config()
    with torch.device("meta"):
        model = Qwen3OmniMoeForConditionalGeneration(config)
    settings = Settings.load(environ={})
    torch.set_default_dtype(torch.float32)
    cost = code2wav_cost(config.code2wav_config, settings.audio.codec_frames)
    for conversations in (1, 8, 32, 64, 128):
        tick = tick_bytes(model, settings, conversations, age_s=100)
        turn = turn_bytes(model, settings, conversations, tokens=AUDIO_TOKENS)
        times = [f"{count / 1e9:.0f} GB, {count / bytes_per_s * 1000:.0f} ms" for count in (tick, turn)]
        operations, states = conversations * cost.operations, conversations * cost.state_bytes
        print(
            f"{conversations:4} conversations: all speak {times[0]}; a turn ends {times[1]}; code2wav "
            f"{operations / 1e12:.2f} TFLOP, {operations / operations_per_s * 1000:.0f} ms, states "
            f"{states / 1e6:.0f} MB, {states / bytes_per_s * 1000:.1f} ms"
        )


if __name__ == "__main__":
    main()
