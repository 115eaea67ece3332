"""Loading of a checkpoint: complete and compatible, or refused with the reason."""

from __future__ import annotations

import json
import logging
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, Qwen3OmniMoeForConditionalGeneration, WhisperFeatureExtractor
from transformers.utils import cached_file

from config.settings import QwenSettings
from engine.errors import CheckpointError

MODEL_TYPE = "qwen3_omni_moe"
MAX_LISTED = 5  # names of weights in an error message


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
    check_model_type(source)
    # transformers warns about rope keys of Qwen's config files.
    logging.getLogger("transformers.modeling_rope_utils").setLevel(logging.ERROR)
    device = resolve_device(settings.device_map)
    select_device(device)
    try:
        model, report = Qwen3OmniMoeForConditionalGeneration.from_pretrained(
            source,
            dtype=resolve_dtype(settings.torch_dtype, device),
            device_map=device,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # `_expect_complete` refuses them with their names
        )
        tokenizer = load_tokenizer(source)
        extractor = WhisperFeatureExtractor.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"the checkpoint {source} cannot be loaded: {error}") from error
    _expect_complete(source, report)
    if settings.lora:
        model = merge_lora(model, settings.lora)
    _expect_rotary_buffers(source, model)
    return Checkpoint(model.eval().requires_grad_(False), tokenizer, extractor)


def load_tokenizer(source: str | Path) -> Any:
    """Load the tokenizer with its chat template, which the stock checkpoint stores in a file of the processor.

    Raises `CheckpointError`.
    """
    tokenizer = AutoTokenizer.from_pretrained(source)
    if not tokenizer.chat_template:
        file = cached_file(str(source), "chat_template.json", _raise_exceptions_for_missing_entries=False)
        if file is None:
            raise CheckpointError(
                f"the checkpoint {source} has no chat template: expected one in its tokenizer or in chat_template.json"
            )
        tokenizer.chat_template = json.loads(Path(file).read_text(encoding="utf-8"))["chat_template"]
    return tokenizer


def check_model_type(source: str | Path) -> None:
    """Raise `CheckpointError` unless `source` has a config.json of a Qwen3-Omni with a talker."""
    expected = "expected a folder with config.json or a hub name"
    try:
        file = cached_file(str(source), "config.json")
        if file is None:
            raise CheckpointError(f"no checkpoint at {source}, {expected}")
        config = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"no checkpoint at {source}, {expected}: {error}") from error
    found = config.get("model_type")
    if found != MODEL_TYPE:
        raise CheckpointError(f"the checkpoint {source}: expected model type {MODEL_TYPE!r}, got {found!r}")
    if not config.get("enable_audio_output", True) or "talker_config" not in config:
        raise CheckpointError(
            f"the checkpoint {source} has no talker (enable_audio_output is false or talker_config is missing): "
            "expected a checkpoint that speaks, such as Qwen3-Omni-30B-A3B-Instruct (Thinking and Captioner do not)"
        )


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


def merge_lora(model: Any, folder: str) -> Any:
    """Return `model` with the LoRA adapter in `folder` merged into its weights. Raises `CheckpointError`."""
    from peft import PeftConfig, PeftModel
    from peft.utils import load_peft_weights

    if not (Path(folder) / "adapter_config.json").is_file():
        raise CheckpointError(f"qwen.lora is {folder!r}, expected a folder with adapter_config.json")
    try:
        config, weights = PeftConfig.from_pretrained(folder), load_peft_weights(folder, device="cpu")
        if any("code2wav" in key for key in weights):
            raise ValueError("it adapts code2wav, which is exported to ONNX without adapters")
        if isinstance(config.target_modules, str):
            config.target_modules = _adapted_modules(model, weights) or config.target_modules
        with warnings.catch_warnings():  # peft warns about missing keys here; `load_adapter` below returns them
            warnings.simplefilter("ignore")
            adapted = PeftModel.from_pretrained(model, folder, config=config)
        loaded = adapted.load_adapter(folder, "default")
        for problem in ("missing_keys", "unexpected_keys"):
            if names := sorted(getattr(loaded, problem)):
                raise ValueError(f"{problem.replace('_', ' ')}: {_listed(names)}")
        return adapted.merge_and_unload(safe_merge=True)
    except (ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"the LoRA adapter {folder} does not fit the checkpoint: {error}") from error


def _adapted_modules(model: Any, weights: Mapping[str, Any]) -> set[str]:
    """Return the names of the modules that an adapter's weights belong to.

    Return an empty set if the model lacks one of them, such as an expert under the name of an older transformers. peft
    reduces a regular expression in an adapter's config to the last components of the matching names, so it would adapt
    the talker's projections together with the thinker's.
    """
    names = {re.sub(r"^base_model\.model\.|\.lora_\w+(\.weight)?$", "", key) for key in weights if ".lora_" in key}
    return names if names <= {name for name, _ in model.named_modules()} else set()


def _listed(names: Sequence[str]) -> str:
    """Join the first `MAX_LISTED` names and count the others."""
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return f"{', '.join(names[:MAX_LISTED])}{more}"


def _expect_complete(source: str | Path, report: dict[str, Any]) -> None:
    """Raise `CheckpointError` if a parameter was not loaded: transformers leaves missing parameters random."""
    for problem in ("missing_keys", "mismatched_keys", "error_msgs"):
        names = sorted(name if isinstance(name, str) else str(name[0]) for name in report.get(problem, ()))
        if names:
            raise CheckpointError(
                f"the checkpoint {source} is incomplete: {problem.replace('_', ' ')}: {_listed(names)}"
            )


def _expect_rotary_buffers(source: str | Path, model: Any) -> None:
    """Raise `CheckpointError` for rotary frequencies that are not finite and positive.

    transformers computes the frequencies at load time; some versions left zeros, which fail without any error.
    """
    for name, buffer in model.named_buffers():
        if name.endswith("inv_freq") and not (torch.isfinite(buffer).all() and (buffer > 0).all()):
            raise CheckpointError(f"after loading {source}, the rotary frequencies {name} are not positive numbers")
