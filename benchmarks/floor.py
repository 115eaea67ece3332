"""The least time that a tick can take: its bytes over the bandwidth of the memory, measured here."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import torch

from config import Settings
from engine.memory import TALKER_OPENING

CUDA_COPY, CPU_COPY = 2**32, 2**28  # bytes; several times any cache
COPIES = 10


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
    predictor = talker.code_predictor
    steps = talker.config.num_code_groups - 1
    heads = _bytes(predictor.lm_head.parameters())
    frame = _decoder(talker.model, sessions) + talker_keys + _bytes(talker.codec_head.parameters())
    frame += steps * _bytes(predictor.model.layers.parameters()) + heads
    return total + frames * frame


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
