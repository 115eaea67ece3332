"""Weights of single modules: an export of 200 million parameters must not load 30 billion."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoConfig
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import (
    Qwen3OmniMoeCode2Wav,
    Qwen3OmniMoeTalkerCodePredictorModelForConditionalGeneration,
)
from transformers.utils import cached_file

from engine.checkpoint import check_model_type
from engine.errors import CheckpointError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


def load_code2wav(source: str, dtype: torch.dtype = torch.float32) -> Any:
    """Load transformers' code2wav with the weights of the checkpoint `source`, on the CPU; raise `CheckpointError`."""
    check_model_type(source)
    return _load(Qwen3OmniMoeCode2Wav(AutoConfig.from_pretrained(source).code2wav_config), source, "code2wav.", dtype)


@dataclass(frozen=True)
class TalkerModel:
    """The part of the talker's model that the code predictor needs."""

    codec_embedding: torch.nn.Embedding  # embedding of the first codebook's codes


@dataclass(frozen=True)
class PredictorParts:
    """The parts of a talker that complete codec frames, with the names of transformers."""

    config: Any
    code_predictor: Any
    model: TalkerModel


def load_predictor(source: str) -> PredictorParts:
    """Load transformers' code predictor and the talker's embedding of first codes, in float32, on the CPU."""
    check_model_type(source)
    config = AutoConfig.from_pretrained(source).talker_config
    predictor = Qwen3OmniMoeTalkerCodePredictorModelForConditionalGeneration(config.code_predictor_config)
    embedding = torch.nn.Embedding(config.text_config.vocab_size, config.text_config.hidden_size)
    return PredictorParts(
        config,
        _load(predictor, source, "talker.code_predictor.", torch.float32),
        TalkerModel(_load(embedding, source, "talker.model.codec_embedding.", torch.float32)),
    )


def _load(model: Any, source: str, prefix: str, dtype: torch.dtype) -> Any:
    weights: dict[str, torch.Tensor] = {}
    for file in _files(source, prefix):
        with safe_open(file, framework="pt") as tensors:
            names = [name for name in tensors.keys() if name.startswith(prefix)]  # noqa: SIM118 - not a dict
            weights.update({name.removeprefix(prefix): tensors.get_tensor(name).float() for name in names})
    try:
        model.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"the checkpoint {source} lacks weights of {prefix.rstrip('.')}: {error}") from error
    return model.to(dtype).eval().requires_grad_(False)


def _files(source: str, prefix: str) -> list[Path]:
    """Return the checkpoint's files with weights whose names begin with `prefix`."""
    index = cached_file(source, INDEX_FILE, _raise_exceptions_for_missing_entries=False)
    if index is None:
        single = cached_file(source, SINGLE_FILE, _raise_exceptions_for_missing_entries=False)
        if single is None:
            raise CheckpointError(f"the checkpoint {source} has neither {SINGLE_FILE} nor {INDEX_FILE}")
        return [Path(single)]
    weight_map: dict[str, str] = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"]
    names = sorted({file for weight, file in weight_map.items() if weight.startswith(prefix)})
    return [Path(cached_file(source, name)) for name in names]
