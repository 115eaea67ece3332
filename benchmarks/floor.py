"""The least time that a tick can take: its bytes over the bandwidth of the memory, measured here.

`python -m benchmarks.floor BYTES_PER_S` prints it for the full-size model in bfloat16, on a machine that lacks both.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from typing import Any

import torch
from transformers import Qwen3OmniMoeForConditionalGeneration

from benchmarks.full_size import full_config
from config import Settings
from engine.memory import TALKER_OPENING

CUDA_COPY, CPU_COPY = 2**32, 2**28  # bytes; several times any cache
COPIES = 10
AUDIO_TOKENS = 110  # of a window of 8 s, and what stands around it


def bandwidth(device: torch.device) -> float:
    """Bytes a second, read and written together, of a large copy: the median of some."""
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


def tick_bytes(model: Any, settings: Settings, sessions: int, age_s: float) -> float:
    """Bytes that a tick of `sessions` conversations must read, each once where it is used.

    Weights once a step, of experts those that even routing reaches; keys and values of conversations of this age.
    """
    frames, tokens = settings.audio.codec_frames, settings.engine.text_tokens_per_tick
    thinker, talker = model.thinker, model.talker
    ticks = age_s * 1000 / settings.audio.tick_ms
    position = {part: 2 * _text(part).num_key_value_heads * _text(part).head_dim * model.dtype.itemsize * _depth(part)
                for part in (thinker, talker)}  # fmt: skip
    thinker_keys = sessions * position[thinker] * ticks * (frames + tokens)
    talker_keys = sessions * position[talker] * (TALKER_OPENING + ticks * frames)

    total = float(_bytes(thinker.audio_tower.parameters()))
    total += _decoder(thinker.model, sessions * frames) + thinker_keys
    total += tokens * (_decoder(thinker.model, sessions) + _bytes(thinker.lm_head.parameters()) + thinker_keys)
    return total + frames * (_frame(talker, sessions) + talker_keys)


def turn_bytes(model: Any, settings: Settings, sessions: int, tokens: int) -> float:
    """Bytes of weights that a tick reads in which a turn of so many tokens ends and `sessions` are answered."""
    thinker, talker = model.thinker, model.talker
    reading = (
        _bytes(thinker.audio_tower.parameters()) + _decoder(thinker.model, tokens) + _decoder(talker.model, tokens)
    )
    text = _decoder(thinker.model, sessions) + _bytes(thinker.lm_head.parameters())
    return reading + settings.audio.codec_frames * (text + _frame(talker, sessions))


def _frame(talker: Any, sessions: int) -> float:
    """Bytes of the weights that a codec frame of so many conversations uses."""
    predictor = talker.code_predictor
    steps = talker.config.num_code_groups - 1
    frame = _decoder(talker.model, sessions) + _bytes(talker.codec_head.parameters())
    return frame + steps * _bytes(predictor.model.layers.parameters()) + _bytes(predictor.lm_head.parameters())


def _decoder(model: Any, tokens: int) -> float:
    """Bytes of a decoder's weights that so many tokens use."""
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


def main() -> None:
    """Prints two tables: ticks in which all speak (`sca`, 100 s old), and ticks in which a turn of 8 s ends."""
    bytes_per_s = float(sys.argv[1])
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("meta"):
        model = Qwen3OmniMoeForConditionalGeneration(full_config())
    settings = Settings.load(environ={})
    for sessions in (1, 8, 32, 64, 128):
        tick = tick_bytes(model, settings, sessions, age_s=100)
        turn = turn_bytes(model, settings, sessions, tokens=AUDIO_TOKENS)
        times = [f"{count / 1e9:.0f} GB, {count / bytes_per_s * 1000:.0f} ms" for count in (tick, turn)]
        print(f"{sessions:4} sessions: all speak {times[0]}; a turn ends {times[1]}")


if __name__ == "__main__":
    main()
