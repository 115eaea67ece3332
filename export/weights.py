"""Weights of single modules: an export of 200 million parameters must not load 30 billion."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
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

from engine.checkpoint import find_folder
from engine.checkpoint_files import check_checkpoint, weight_files
from engine.errors import CheckpointError

CODE2WAV = "code2wav."  # first part of the names of a module's weights
PREDICTOR_PARTS = ("talker.code_predictor.", "talker.model.codec_embedding.")


def load_code2wav(source: str, dtype: torch.dtype = torch.float32) -> Any:
    """Load transformers' code2wav with the weights of the checkpoint `source`, on the CPU; raise `CheckpointError`."""
    check_checkpoint(find_folder(source))
    return _load(Qwen3OmniMoeCode2Wav(AutoConfig.from_pretrained(source).code2wav_config), source, CODE2WAV, dtype)


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
    check_checkpoint(find_folder(source))
    config = AutoConfig.from_pretrained(source).talker_config
    predictor = Qwen3OmniMoeTalkerCodePredictorModelForConditionalGeneration(config.code_predictor_config)
    embedding = torch.nn.Embedding(config.text_config.vocab_size, config.text_config.hidden_size)
    of_predictor, of_embedding = PREDICTOR_PARTS
    return PredictorParts(
        config,
        _load(predictor, source, of_predictor, torch.float32),
        TalkerModel(_load(embedding, source, of_embedding, torch.float32)),
    )


def weights_digest(source: str, *prefixes: str) -> str:
    """Return a digest of the checkpoint's config and of its weights whose names begin with one of `prefixes`.

    The digest follows from the content: a copy of the checkpoint has the same one, and so has a checkpoint that only
    differs in other modules. Raises `CheckpointError`.
    """
    digest = hashlib.sha256((find_folder(source) / "config.json").read_bytes())
    for prefix in prefixes:
        for name, tensor in sorted(_tensors(source, prefix), key=lambda named: named[0]):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _load(model: Any, source: str, prefix: str, dtype: torch.dtype) -> Any:
    weights = {name.removeprefix(prefix): tensor.float() for name, tensor in _tensors(source, prefix)}
    try:
        model.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"the checkpoint {source} lacks weights of {prefix.rstrip('.')}: {error}") from error
    return model.to(dtype).eval().requires_grad_(False)


def _tensors(source: str, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield name and value of the checkpoint's weights whose names begin with `prefix`."""
    for file in _files(source, prefix):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a dict
                if name.startswith(prefix):
                    yield name, tensors.get_tensor(name)


def _files(source: str, prefix: str) -> list[Path]:
    """Return the checkpoint's files with weights whose names begin with `prefix`."""
    files = weight_files(find_folder(source))
    return sorted(file for file, names in files.items() if not names or any(name.startswith(prefix) for name in names))
