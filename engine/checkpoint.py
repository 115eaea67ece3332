"""Loading of a checkpoint: complete and compatible, or refused with the reason."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, Qwen3OmniMoeForConditionalGeneration, WhisperFeatureExtractor
from transformers.utils import cached_file

from config.settings import QwenSettings
from engine.adapter import read_adapter
from engine.adapter_file import list_names
from engine.adapter_merge import merge_adapter
from engine.checkpoint_files import check_checkpoint, read_json
from engine.errors import CheckpointError

LIBRARY_ERRORS = (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, SafetensorError)


@dataclass(frozen=True)
class Checkpoint:
    """The model in evaluation mode, its tokenizer and its feature extractor."""

    model: Any  # Qwen3OmniMoeForConditionalGeneration
    tokenizer: Any
    feature_extractor: Any  # WhisperFeatureExtractor


def load_checkpoint(source: str | Path, settings: QwenSettings) -> Checkpoint:
    """Load `source`, a folder or a hub name, to the device and in the dtype of `settings`.

    Raises `CheckpointError`.
    """
    folder = check_source(source)
    adapter = read_adapter(settings.lora, folder) if settings.lora else None
    device = resolve_device(settings.device_map)
    select_device(device)
    try:
        model, report = Qwen3OmniMoeForConditionalGeneration.from_pretrained(
            folder,
            dtype=resolve_dtype(settings.torch_dtype, device),
            device_map=device,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # `_expect_complete` refuses them with their names
        )
        tokenizer = load_tokenizer(folder)
        extractor = WhisperFeatureExtractor.from_pretrained(folder)
    except LIBRARY_ERRORS as error:
        raise CheckpointError(f"the checkpoint {source} cannot be loaded: {error}") from error
    _expect_complete(source, report)
    if adapter:
        model = merge_adapter(model, adapter, settings.lora)
    _expect_rotary_buffers(source, model)
    talker = model.config.talker_config
    talker.speaker_id = {name.lower(): code for name, code in talker.speaker_id.items()}
    return Checkpoint(model.eval().requires_grad_(False), tokenizer, extractor)


def load_tokenizer(source: str | Path) -> Any:
    """Load the tokenizer with its chat template, which the stock checkpoint stores in a file of the processor.

    Raises `CheckpointError`.
    """
    tokenizer = AutoTokenizer.from_pretrained(source)
    file = Path(source) / "chat_template.json"
    if not tokenizer.chat_template and file.is_file():
        found = read_json(file)
        tokenizer.chat_template = found.get("chat_template") if isinstance(found, dict) else None
    if not tokenizer.chat_template:
        raise CheckpointError(
            f"the checkpoint {source} has no chat template: expected one in its tokenizer or in chat_template.json"
        )
    return tokenizer


def find_folder(source: str | Path) -> Path:
    """Return the folder of a checkpoint: `source` itself, or the copy of a hub name in the cache.

    Raises `CheckpointError` if there is none.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder
    try:
        file = cached_file(str(source), "config.json", local_files_only=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"no checkpoint at {source}, expected a folder with config.json or a hub name") from error
    return Path(file).parent


def check_source(source: str | Path, lora: str = "") -> Path:
    """Return the folder of a checkpoint whose small files and weight files, and those of its adapter, can be served.

    Raises `CheckpointError`.
    """
    folder = find_folder(source)
    check_checkpoint(folder)
    # transformers warns about rope keys of Qwen's config files.
    logging.getLogger("transformers.modeling_rope_utils").setLevel(logging.ERROR)
    try:
        AutoConfig.from_pretrained(folder)
        load_tokenizer(folder)
        WhisperFeatureExtractor.from_pretrained(folder)
    except CheckpointError:
        raise
    except Exception as error:  # transformers and tokenizers raise errors of many unrelated types for such files
        raise CheckpointError(f"the checkpoint {folder} cannot be read: {error}") from error
    if lora:
        read_adapter(lora, folder)
    return folder


def resolve_device(device_map: str) -> str:
    """Return the device to load to: `auto` is cuda if there is a CUDA device, else cpu.

    Raises `CheckpointError` if the machine lacks the CUDA device.
    """
    if device_map == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    _, _, number = device_map.partition("cuda:")
    if device_map.startswith("cuda") and torch.cuda.device_count() <= int(number or 0):
        found = torch.cuda.device_count() or "no"
        raise CheckpointError(f"qwen.device_map is {device_map!r}, but this machine has {found} CUDA device(s)")
    return device_map


def select_device(device: str) -> None:
    """Make `cuda:N` the current device of this process, which streams, graphs and kernels use."""
    if device.startswith("cuda:"):
        torch.cuda.set_device(device)


def resolve_dtype(name: str, device: str) -> torch.dtype:
    """Return the dtype called `name`; `auto` is bfloat16 on cuda, float32 elsewhere."""
    if name == "auto":
        name = "bfloat16" if device.startswith("cuda") else "float32"
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _expect_complete(source: str | Path, report: dict[str, Any]) -> None:
    """Raise `CheckpointError` if a parameter was not loaded: transformers leaves missing parameters random."""
    for problem in ("missing_keys", "mismatched_keys", "error_msgs"):
        names = sorted(name if isinstance(name, str) else str(name[0]) for name in report.get(problem, ()))
        if names:
            raise CheckpointError(
                f"the checkpoint {source} is incomplete: {problem.replace('_', ' ')}: {list_names(names)}"
            )


def _expect_rotary_buffers(source: str | Path, model: Any) -> None:
    """Raise `CheckpointError` for rotary frequencies that are not finite and positive.

    transformers computes the frequencies at load time; some versions left zeros, which fail without any error.
    """
    for name, buffer in model.named_buffers():
        if name.endswith("inv_freq") and not (torch.isfinite(buffer).all() and (buffer > 0).all()):
            raise CheckpointError(f"after loading {source}, the rotary frequencies {name} are not positive numbers")
