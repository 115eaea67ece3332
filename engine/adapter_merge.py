"""Merging of a LoRA adapter into the weights of a model."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from peft import PeftModel
from peft.utils import set_peft_model_state_dict

from engine.adapter import ROOT, Adapter, as_plain
from engine.adapter_file import AdapterError, list_names
from engine.errors import CheckpointError


@torch.no_grad()
def merge_adapter(model: Any, adapter: Adapter, folder: str) -> Any:
    """Return `model` with an adapter of `read_adapter` merged into its weights; `folder` names it in an error.

    peft merges the layers that it knows; the layers that transformers stores in parameters of another form (one expert,
    a router) are merged here in the same arithmetic. Raises `CheckpointError`.
    """
    parameters = dict(model.named_parameters())
    for target, value in adapter.values.items():
        place = target.of(parameters)
        place.copy_(value.to(place))
    try:
        if adapter.pairs:  # after the full weights, which may be those below a pair
            model = _merge_pairs(model, adapter)
    except (ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"the LoRA adapter {folder} cannot be merged: {error}") from error
    parameters = dict(model.named_parameters())
    for target, (a, b, scaling) in adapter.slices.items():
        place = target.of(parameters)
        delta = (b.to(place.device, torch.float32) @ a.to(place.device, torch.float32)) * scaling
        place += delta.to(place.dtype)
    for name, (rows, value) in adapter.tokens.items():
        weight = parameters[name].data
        weight[rows] = value.to(weight)
    return model


def _merge_pairs(model: Any, adapter: Adapter) -> Any:
    with warnings.catch_warnings():  # peft warns about missing keys; they are checked below
        warnings.simplefilter("ignore")
        adapted = PeftModel(as_plain(model), adapter.config)
        loaded = set_peft_model_state_dict(adapted, adapter.pairs)
    missing = [name for name in loaded.missing_keys if ".lora_" in name]
    for problem, names in (("missing", missing), ("unexpected", loaded.unexpected_keys)):
        if names:
            raise AdapterError(f"{problem} keys: {list_names(names)}")
    return adapted.merge_and_unload(safe_merge=True)[ROOT]
