"""A LoRA adapter as training tools write it: renamed to the checkpoint's modules, and checked without its weights."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.utils.other import get_pattern_key
from torch import Tensor, nn
from transformers import AutoConfig, Qwen3OmniMoeForConditionalGeneration

from engine.adapter_file import CHANGED_HERE, CONFIG, AdapterError, list_names, read_config, read_weights
from engine.adapter_names import (
    COPIES,
    EXPERT,
    TOKENS,
    TUNED,
    WRAPPERS,
    is_zero,
    plain_name,
    without_base_layers,
)
from engine.checkpoint_files import read_object
from engine.errors import CheckpointError

ROOT = "served"  # name of the model in the module that peft adapts
PREFIXES = (
    "",
    "thinker.",
    "talker.",
    "thinker.model.",
    "talker.model.",
)  # names of the part that was trained


def as_plain(model: nn.Module) -> nn.Module:
    """Return a module that contains `model` under the name `ROOT`.

    peft rewrites the names of an adapter for the model types of transformers; their names here are final.
    """
    return nn.ModuleDict({ROOT: model})


@dataclass(frozen=True)
class Target:
    """A parameter of the checkpoint, or the rows of one expert in it."""

    parameter: str
    expert: int | None = None
    start: int = 0  # first of its rows
    stop: int | None = None

    def of(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Return the view of the target in the parameters of a model."""
        whole = parameters[self.parameter].data
        return whole if self.expert is None else whole[self.expert, self.start : self.stop]


@dataclass
class Adapter:
    """Changes of a checkpoint's weights by an adapter."""

    config: LoraConfig
    pairs: dict[str, Tensor] = field(default_factory=dict)  # weights that peft merges, under its names
    slices: dict[Target, tuple[Tensor, Tensor, float]] = field(default_factory=dict)  # A, B and scaling
    values: dict[Target, Tensor] = field(default_factory=dict)  # full weights
    tokens: dict[str, tuple[list[int], Tensor]] = field(default_factory=dict)  # embedding to rows and their values


def read_adapter(folder: str, source: str | Path) -> Adapter:
    """Read the adapter in `folder` and check it against the config of the checkpoint `source`.

    Raises `CheckpointError` with the reason if a part of the adapter would not be served as it was trained.
    """
    raw = read_object(
        Path(folder) / CONFIG,
        f"qwen.lora is {folder!r}, expected a folder with {CONFIG} (a trainer writes it into checkpoint-*)",
    )
    weights = read_weights(Path(folder))
    with torch.device("meta"):
        model = Qwen3OmniMoeForConditionalGeneration(AutoConfig.from_pretrained(source))
    try:
        return _Reader(model, raw, weights).read()
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        trained_on = f" (trained on {base})" if (base := raw.get("base_model_name_or_path")) else ""
        raise CheckpointError(f"the LoRA adapter {folder}{trained_on} does not fit the checkpoint: {error}") from error


class _Reader:
    """Assignment of an adapter's weights to the parameters of a model without weights."""

    def __init__(self, model: nn.Module, raw: dict[str, Any], weights: dict[str, Tensor]):
        self._model, self._modules = model, dict(model.named_modules())
        self._parameters = {name: tuple(value.shape) for name, value in model.named_parameters()}
        self._config = read_config(raw)
        self._tuned: dict[str, dict[str, Tensor]] = {}  # module to the rest of the name and the weight
        self._full: dict[str, Tensor] = {}
        self._tokens: dict[str, Tensor] = {}
        for key, value in weights.items():
            self._sort(WRAPPERS.sub("", key.removeprefix("module.")), value)
        self._drop_zeros()

    def read(self) -> Adapter:
        """Return the adapter; raise `AdapterError` or an error of peft with the first reason why it does not fit."""
        prefix = self._prefix()
        adapter = Adapter(copy.deepcopy(self._config))
        targets, patterns = set(), {"rank_pattern": {}, "alpha_pattern": {}}  # type: ignore[var-annotated]
        unknown = []
        for name, parts in self._tuned.items():
            module, full = prefix + without_base_layers(name), prefix + name
            if module.startswith("code2wav."):
                raise AdapterError("it adapts code2wav, which is exported to ONNX without adapters")
            target = self._slice(module)
            if module in self._modules and (target is None or self._is_linear(module)):
                adapter.pairs.update({f"base_model.model.{ROOT}.{full}.{leaf}": value for leaf, value in parts.items()})
                targets.add(module)
                for kind, changed in patterns.items():
                    configured = getattr(self._config, kind) or {}
                    found = get_pattern_key(configured.keys(), without_base_layers(name))
                    if found in configured:
                        changed[re.escape(module)] = configured[found]
            elif target is not None:
                adapter.slices[target] = self._pair(name, module, target, parts)
            else:
                unknown += [f"{module}.{leaf}" for leaf in parts]
        for name, value in self._full.items():
            self._read_full(adapter, prefix + name, value, unknown)
        for name, value in self._tokens.items():
            adapter.tokens[prefix + name + ".weight"] = self._token_rows(prefix + name, name, value)
        if unknown:
            raise AdapterError(f"unexpected keys: {list_names(unknown)}")
        self._complete_config(adapter.config, prefix, targets, patterns)
        if adapter.pairs:
            self._try(adapter)
        if not (adapter.pairs or adapter.slices or adapter.values or adapter.tokens):
            raise AdapterError("it changes nothing: all of its pairs are zero; was it saved before training?")
        return adapter

    def _sort(self, key: str, value: Tensor) -> None:
        if not value.numel():
            raise AdapterError(f"{key} is empty: the trainer did not gather the shards (ZeRO-3, FSDP) before saving")
        if not torch.isfinite(value).all():
            raise AdapterError(f"{key} is not finite (NaN or infinity): the training has diverged")
        if match := TUNED.fullmatch(key):
            module, leaf, rest = match.groups()
            suffix = (rest or "").rpartition(".")[2]  # the rest may begin with the adapter's name
            leaf += f".{suffix}" if suffix in ("weight", "bias") else ""
            self._tuned.setdefault(module, {})[leaf] = value
        elif match := TOKENS.fullmatch(key):
            self._tokens[match[1]] = value
        elif ".original_module." not in key:
            self._full[COPIES.sub("", key)] = value

    def _drop_zeros(self) -> None:
        """Drop the modules whose pairs are zero: the layers that training did not use."""
        if self._config.init_lora_weights in CHANGED_HERE:
            return
        nested: dict[str, list[str]] = {}
        for name in self._tuned:
            nested.setdefault(without_base_layers(name), []).append(name)
        for names in nested.values():
            if all(is_zero(self._tuned[name]) for name in names):
                for name in names:
                    del self._tuned[name]

    def _prefix(self) -> str:
        """Return the first prefix under which all names exist, else that of the fewest problems."""
        return min(PREFIXES, key=self._problems)

    def _problems(self, prefix: str) -> int:
        tuned = (
            not self._fits(prefix + without_base_layers(name), parts.get("lora_A.weight"), parts.get("lora_B.weight"))
            for name, parts in self._tuned.items()
        )
        others = (self._locate(prefix + name) is None for name in self._full)
        return sum(tuned) + sum(others) + sum(prefix + name not in self._modules for name in self._tokens)

    def _fits(self, module: str, a: Tensor | None, b: Tensor | None) -> bool:
        target = self._slice(module)
        if target is None:
            return module in self._modules
        shape = self._shape(target)
        return a is None or b is None or (len(shape) != 2) or (b.shape[0], a.shape[-1]) == shape

    def _is_linear(self, module: str) -> bool:
        return isinstance(self._modules.get(module), nn.Linear | nn.Embedding | nn.modules.conv._ConvNd)

    def _slice(self, module: str) -> Target | None:
        return self._locate(f"{module}.weight")

    def _locate(self, name: str) -> Target | None:
        """Return the place of a weight, also for the weight of one expert; None if the model lacks it."""
        if name in self._parameters:
            return Target(name)
        if not (match := EXPERT.fullmatch(name.removesuffix(".weight"))):
            return None
        experts, number, projection = match[1], int(match[2]), match[3]
        fused = f"{experts}.{'down_proj' if projection == 'down_proj' else 'gate_up_proj'}"
        if fused not in self._parameters or number >= self._parameters[fused][0]:
            return None
        rows = self._parameters[fused][1]
        start, stop = {"gate_proj": (0, rows // 2), "up_proj": (rows // 2, rows), "down_proj": (0, rows)}[projection]
        return Target(fused, number, start, stop)

    def _shape(self, target: Target) -> tuple[int, ...]:
        shape = self._parameters[target.parameter]
        return shape if target.stop is None else (target.stop - target.start, *shape[2:])

    def _pair(self, name: str, module: str, target: Target, parts: dict[str, Tensor]) -> tuple[Tensor, Tensor, float]:
        """Return A, B and the scaling of a layer that transformers stores in a parameter of another form."""
        if set(parts) != {"lora_A.weight", "lora_B.weight"}:
            raise AdapterError(f"{module}: expected lora_A and lora_B, got {list_names(parts)}")
        if self._config.init_lora_weights in CHANGED_HERE:
            raise AdapterError(f"{module}: {self._config.init_lora_weights} of experts; convert it to a plain LoRA")
        a, b = parts["lora_A.weight"], parts["lora_B.weight"]
        if (b.shape[0], a.shape[1]) != self._shape(target) or a.shape[0] != b.shape[1]:
            raise AdapterError(
                f"{module}: expected weights of {self._shape(target)}, got {tuple(b.shape)} x {tuple(a.shape)}"
            )
        ranks, alphas = self._config.rank_pattern or {}, self._config.alpha_pattern or {}
        rank = ranks.get(get_pattern_key(ranks.keys(), name), self._config.r)
        alpha = alphas.get(get_pattern_key(alphas.keys(), name), self._config.lora_alpha)
        if a.shape[0] != rank:
            raise AdapterError(f"{module}: expected rank {rank} as in {CONFIG}, got {a.shape[0]}")
        return a, b, alpha / (rank**0.5 if self._config.use_rslora else rank)

    def _read_full(self, adapter: Adapter, name: str, value: Tensor, unknown: list[str]) -> None:
        if name.startswith("code2wav."):
            raise AdapterError("it adapts code2wav, which is exported to ONNX without adapters")
        target = self._locate(name)
        if target is None:
            unknown.append(name)
        elif tuple(value.shape) != self._shape(target):
            raise AdapterError(f"{name}: expected the shape {self._shape(target)}, got {tuple(value.shape)}")
        else:
            adapter.values[target] = value

    def _token_rows(self, module: str, name: str, value: Tensor) -> tuple[list[int], Tensor]:
        """Return the rows of an embedding that the adapter replaces, and their values."""
        indices = self._config.trainable_token_indices
        if isinstance(indices, dict):
            indices = next((rows for key, rows in indices.items() if f".{name}".endswith(f".{key}")), None)
        shape = self._parameters.get(f"{module}.weight", (0, 0))
        if not indices or tuple(value.shape) != (len(indices), shape[1]) or max(indices) >= shape[0]:
            raise AdapterError(f"{module}: expected rows of {shape} at {indices}, got {tuple(value.shape)}")
        return list(indices), value

    def _complete_config(self, config: LoraConfig, prefix: str, targets: set[str], patterns: dict[str, Any]) -> None:
        """Replace the names in a config, which may match modules of other parts, with the names of the weights."""
        ends = config.target_parameters or []
        parameters = [
            name
            for name in self._parameters
            if name.rpartition(".")[0] in targets
            and any(f".{name.removeprefix(prefix)}".endswith(f".{end}") for end in ends)
        ]
        config.target_parameters = [f"{ROOT}.{name}" for name in parameters] or None
        config.target_modules = {
            f"{ROOT}.{name}" for name in targets - {name.rpartition(".")[0] for name in parameters}
        }
        config.rank_pattern, config.alpha_pattern = patterns["rank_pattern"], patterns["alpha_pattern"]
        config.modules_to_save = config.layers_to_transform = config.layers_pattern = config.exclude_modules = None
        config.trainable_token_indices = config.task_type = None
        config.bias, config.inference_mode = "none", True

    def _try(self, adapter: Adapter) -> None:
        """Raise `AdapterError` unless peft, on a model without weights, expects exactly the pairs of the adapter."""
        config = copy.deepcopy(adapter.config)
        config.init_lora_weights = False
        tuned = PeftModel(as_plain(self._model), config).state_dict()
        expected = {plain_name(name): tuple(value.shape) for name, value in tuned.items() if ".lora_" in name}
        found = {plain_name(name): tuple(value.shape) for name, value in adapter.pairs.items()}
        for problem, names in (
            ("missing", expected.keys() - found.keys()),
            ("unexpected", found.keys() - expected.keys()),
        ):
            if names:
                raise AdapterError(f"{problem} keys: {list_names(names)}")
        for name, shape in found.items():
            if shape != expected[name]:
                raise AdapterError(f"{name}: expected the shape {expected[name]}, got {shape}")
