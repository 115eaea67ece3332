"""The files of a LoRA adapter: its config and its weights, each read or refused with the reason."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors.torch import load_file
from torch import Tensor

from engine.checkpoint_files import check_weights, expect_content
from engine.errors import CheckpointError

CONFIG, FILES = "adapter_config.json", ("adapter_model.safetensors", "adapter_model.bin")
CHANGED_BASES = ("pissa_niter", "corda", "loftq", "lora_ga")  # initializations that also change the base weights
CHANGED_HERE = ("pissa", "olora")  # initializations whose change peft repeats
UNUSED = ("peft_type", "auto_mapping", "eva_config", "corda_config", "loftq_config")
MAX_LISTED = 5  # names in an error message


class AdapterError(ValueError):
    """The reason why an adapter does not fit the checkpoint."""


def list_names(names: Iterable[str]) -> str:
    """Join the first `MAX_LISTED` names and count the others."""
    ordered = sorted(names)
    more = f" and {len(ordered) - MAX_LISTED} more" if len(ordered) > MAX_LISTED else ""
    return f"{', '.join(ordered[:MAX_LISTED])}{more}"


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return the weights of the adapter in `folder`; raise `CheckpointError`."""
    file = next((folder / name for name in FILES if (folder / name).is_file() or (folder / name).is_symlink()), None)
    if file is None:
        raise CheckpointError(f"the LoRA adapter {folder} has no weights: expected {' or '.join(FILES)}")
    expect_content(file)
    if file.suffix == ".safetensors":
        check_weights(file)
        return load_file(file)
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises errors of many types for a broken file
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise CheckpointError(f"{file}: expected a dictionary of tensors, got {type(found).__name__}")
    return found


def read_config(raw: dict[str, Any]) -> LoraConfig:
    """Return the config in the content of adapter_config.json, of any version of peft; raise `AdapterError`."""
    kind = raw.get("peft_type", "LORA")
    if kind != "LORA":
        raise AdapterError(
            f"expected an adapter of the type LORA, got {kind}: merge it into a checkpoint with its trainer"
        )
    init = raw.get("init_lora_weights")
    if isinstance(init, str) and init.startswith(CHANGED_BASES):
        raise AdapterError(
            f"{init} also changed the weights below the adapter: save it as a plain LoRA (see peft's docs)"
        )
    for name in ("layer_replication", "alora_invocation_tokens"):
        if raw.get(name):
            raise AdapterError(f"{name} cannot be merged into the weights")
    known = {key: value for key, value in raw.items() if key in LoraConfig.__dataclass_fields__ and key not in UNUSED}
    if init not in CHANGED_HERE:
        known["init_lora_weights"] = True  # the other initializations only choose the values before training
    return LoraConfig(**known)
