"""A checkpoint, loaded whole or not at all."""

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
LISTED = 5  # names of weights that an error lists


@dataclass(frozen=True)
class Checkpoint:
    """The model, in evaluation mode, and what stands before it."""

    model: Any  # Qwen3OmniMoeForConditionalGeneration
    tokenizer: Any
    feature_extractor: Any  # WhisperFeatureExtractor


def load_checkpoint(source: str | Path, settings: QwenSettings) -> Checkpoint:
    """Loads `source`, a folder or a hub name, as `settings` says. Raises `CheckpointError`."""
    check_model_type(source)
    logging.getLogger("transformers.modeling_rope_utils").setLevel(logging.ERROR)  # warns about Qwen's own keys
    device = resolve_device(settings.device_map)
    take_device(device)
    try:
        model, report = Qwen3OmniMoeForConditionalGeneration.from_pretrained(
            source,
            dtype=resolve_dtype(settings.torch_dtype, device),
            device_map=device,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they come in the report, and are refused below by name
        )
        tokenizer = load_tokenizer(source)
        extractor = WhisperFeatureExtractor.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"the checkpoint {source} cannot be loaded: {error}") from error
    _expect_whole(source, report)
    if settings.lora:
        model = merge_lora(model, settings.lora)
    _expect_rotary_buffers(source, model)
    return Checkpoint(model.eval().requires_grad_(False), tokenizer, extractor)


def load_tokenizer(source: str | Path) -> Any:
    """The checkpoint's tokenizer, with its chat template: the stock checkpoint keeps that beside its processor."""
    tokenizer = AutoTokenizer.from_pretrained(source)
    if not tokenizer.chat_template:
        file = cached_file(str(source), "chat_template.json", _raise_exceptions_for_missing_entries=False)
        if file is None:
            raise CheckpointError(
                f"the checkpoint {source} has no chat template, neither its tokenizer's nor a file of it"
            )
        tokenizer.chat_template = json.loads(Path(file).read_text(encoding="utf-8"))["chat_template"]
    return tokenizer


def check_model_type(source: str | Path) -> None:
    """Raises `CheckpointError` unless `source` has a config.json of a Qwen3-Omni that speaks."""
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
        raise CheckpointError(f"the checkpoint {source} is of model type {found!r}, expected {MODEL_TYPE!r}")
    if not config.get("enable_audio_output", True) or "talker_config" not in config:
        raise CheckpointError(
            f"the checkpoint {source} has no talker (enable_audio_output is false or talker_config is missing): it has "
            "no voice to serve; expected one like Qwen3-Omni-30B-A3B-Instruct, not its Thinking or Captioner"
        )


def resolve_device(device_map: str) -> str:
    """`auto` is cuda where there is one, else cpu. Raises `CheckpointError` for a cuda that is not there."""
    if device_map == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    _, _, number = device_map.partition("cuda:")
    if device_map.startswith("cuda") and torch.cuda.device_count() <= int(number or 0):
        found = torch.cuda.device_count() or "no"
        raise CheckpointError(f"qwen.device_map is {device_map!r}, but this machine has {found} CUDA device")
    return device_map


def take_device(device: str) -> None:
    """Makes `cuda:N` this process's device: streams, graphs and kernels go to the current one."""
    if device.startswith("cuda:"):
        torch.cuda.set_device(device)


def resolve_dtype(name: str, device: str) -> torch.dtype:
    """`auto` is bfloat16 on cuda, float32 elsewhere."""
    if name == "auto":
        name = "bfloat16" if device.startswith("cuda") else "float32"
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def merge_lora(model: Any, folder: str) -> Any:
    """`model` with the adapter in `folder` merged into its weights. Raises `CheckpointError`."""
    from peft import PeftConfig, PeftModel
    from peft.utils import load_peft_weights

    if not (Path(folder) / "adapter_config.json").is_file():
        raise CheckpointError(f"qwen.lora is {folder!r}, expected a folder with adapter_config.json")
    try:
        config, weights = PeftConfig.from_pretrained(folder), load_peft_weights(folder, device="cpu")
        if any("code2wav" in key for key in weights):
            raise ValueError("it adapts code2wav, which is served as ONNX of the checkpoint's own weights")
        if isinstance(config.target_modules, str):
            config.target_modules = _adapted_modules(model, weights) or config.target_modules
        with warnings.catch_warnings():  # of keys that it does not find; the next call returns them
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
    """The modules that an adapter's weights are for; none if one of them is not here, as an expert by an older name.

    Where an adapter's config names them by a regular expression, peft takes the last parts of the names that match: it
    would adapt the talker's projections like the thinker's.
    """
    names = {re.sub(r"^base_model\.model\.|\.lora_\w+(\.weight)?$", "", key) for key in weights if ".lora_" in key}
    return names if names <= {name for name, _ in model.named_modules()} else set()


def _listed(names: Sequence[str]) -> str:
    """The first of many names."""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"{', '.join(names[:LISTED])}{more}"


def _expect_whole(source: str | Path, report: dict[str, Any]) -> None:
    """Every parameter came from the checkpoint: transformers would leave a missing one random."""
    for problem in ("missing_keys", "mismatched_keys", "error_msgs"):
        names = sorted(name if isinstance(name, str) else str(name[0]) for name in report.get(problem, ()))
        if names:
            raise CheckpointError(
                f"the checkpoint {source} is not whole: {problem.replace('_', ' ')}: {_listed(names)}"
            )


def _expect_rotary_buffers(source: str | Path, model: Any) -> None:
    """Rotary frequencies are not saved but computed: zero or NaN ones have been seen, and give quiet nonsense."""
    for name, buffer in model.named_buffers():
        if name.endswith("inv_freq") and not (torch.isfinite(buffer).all() and (buffer > 0).all()):
            raise CheckpointError(f"after loading {source}, the rotary frequencies {name} are not positive numbers")
