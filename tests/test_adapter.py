"""LoRA adapters as training tools write them: merged as peft merges them, or refused with the reason before loading."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Qwen3OmniMoeForConditionalGeneration

from engine import checkpoint as loading
from engine.checkpoint import load_checkpoint
from engine.errors import CheckpointError
from tests.conftest import CPU

LAYER = "thinker.model.layers.0"
THINKER = [f"thinker.model.layers.{number}.self_attn.q_proj" for number in range(3)]
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def base(folder: Path) -> Any:
    return Qwen3OmniMoeForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)


def train(model: Any, folder: Path, part: str = "", **config: Any) -> PeftModel:
    """Save an adapter of random weights of a part of `model`; return peft's model."""
    torch.manual_seed(1)
    trained = get_peft_model(model.get_submodule(part), LoraConfig(r=4, lora_alpha=8, **config))
    for name, parameter in trained.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            nn.init.normal_(parameter, std=0.1)
    trained.save_pretrained(folder)
    return trained


def merge(checkpoint: Any, adapter: Path) -> Any:
    return load_checkpoint(checkpoint, dataclasses.replace(CPU, lora=str(adapter))).model


def expect_equal(found: nn.Module, expected: nn.Module) -> None:
    weights = dict(found.named_parameters())
    names = [name for name, _ in expected.named_parameters()]
    assert names == list(weights)
    for name, parameter in expected.named_parameters():
        assert torch.equal(weights[name], parameter), name


def rewrite(folder: Path, rename: Callable[[str], str]) -> None:
    weights = load_file(folder / WEIGHTS)
    save_file({rename(key): value for key, value in weights.items()}, folder / WEIGHTS, {"format": "pt"})


def configure(folder: Path, **values: Any) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, **values}))


@pytest.fixture(autouse=True)
def is_loaded(monkeypatch) -> list[bool]:
    """List with an entry for each loading of weights by the engine."""
    loads: list[bool] = []
    stock = loading.Qwen3OmniMoeForConditionalGeneration

    class Recorded:
        @staticmethod
        def from_pretrained(*arguments: Any, **options: Any) -> Any:
            loads.append(True)
            return stock.from_pretrained(*arguments, **options)

    monkeypatch.setattr(loading, "Qwen3OmniMoeForConditionalGeneration", Recorded)
    return loads


TRAINED = {
    "thinker": {"part": "thinker", "target_modules": ["q_proj", "v_proj"]},
    "thinker's text model": {"part": "thinker.model", "target_modules": ["o_proj"]},
    "talker": {"part": "talker", "target_modules": ["text_projection.linear_fc1", "codec_head", "o_proj"]},
    "rank-stabilized": {"part": "thinker", "target_modules": ["q_proj"], "use_rslora": True},
    "with patterns": {
        "part": "thinker",
        "target_modules": ["q_proj", "k_proj"],
        "rank_pattern": {r"^model\.layers\.1\.self_attn\.q_proj": 2},
        "alpha_pattern": {"k_proj": 3},
    },
    "dora": {"part": "thinker", "target_modules": ["q_proj"], "use_dora": True},
    "embedding": {"part": "thinker", "target_modules": ["embed_tokens", "lm_head"]},
    "convolution": {"part": "thinker", "target_modules": ["conv2d1", "proj1"]},
    "modules to save": {
        "part": "thinker",
        "target_modules": ["q_proj"],
        "modules_to_save": ["lm_head", "embed_tokens"],
    },
    "some tokens": {"part": "thinker", "target_modules": ["q_proj"], "trainable_token_indices": [3, 9]},
    "fused experts": {
        "part": "thinker",
        "target_modules": ["q_proj"],
        "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
    },
    "lora bias": {"part": "thinker", "target_modules": ["audio_tower.layers.0.self_attn.q_proj"], "lora_bias": True},
    "pissa": {"part": "thinker", "target_modules": ["q_proj"], "init_lora_weights": "pissa"},
}


@pytest.mark.parametrize("options", TRAINED.values(), ids=TRAINED)
def test_adapter_is_merged_as_by_peft(checkpoint_folder, tmp_path, options):
    part, config = options["part"], {name: value for name, value in options.items() if name != "part"}
    train(base(checkpoint_folder), tmp_path, part, **config)
    reference = base(checkpoint_folder)
    merged = PeftModel.from_pretrained(reference.get_submodule(part), tmp_path).merge_and_unload()
    reference.set_submodule(part, merged)
    expect_equal(merge(checkpoint_folder, tmp_path), reference)
    assert any(
        not torch.equal(a, b) for a, b in zip(base(checkpoint_folder).parameters(), reference.parameters(), strict=True)
    )


def test_adapter_of_one_half_of_fused_weights_is_merged(checkpoint_folder, tmp_path):
    """Peft refuses such targets for the names of transformers' mixtures of experts, in layers of other kinds too."""
    name = "layers.0.mlp.shared_expert.up_proj"
    reference = base(checkpoint_folder)
    trained = train(reference.talker.model, tmp_path, target_modules=[name])
    rewrite(tmp_path, lambda key: key.replace("base_model.model.", "base_model.model.talker.model."))
    layer = trained.base_model.model.get_submodule(name)
    expected = layer.base_layer.weight + layer.get_delta_weight("default")
    found = merge(checkpoint_folder, tmp_path).talker.model.get_submodule(name).weight
    assert torch.equal(found, expected)


RENAMED = {
    "prefix outside": lambda key: key.replace("base_model.model.thinker.", "thinker.base_model.model."),
    "no prefix": lambda key: key.removeprefix("base_model.model."),
    "two prefixes": lambda key: "base_model.model." + key,
    "name of the adapter": lambda key: re.sub(r"(lora_[AB])\.weight", r"\1.default.weight", key),
    "compiled": lambda key: key.replace("base_model.model.", "base_model.model._orig_mod."),
    "data parallel": lambda key: "module." + key,
    "sharded": lambda key: key.replace("layers.0.", "layers.0._fsdp_wrapped_module."),
}


@pytest.mark.parametrize("rename", RENAMED.values(), ids=RENAMED)
def test_names_of_training_tools_are_understood(checkpoint_folder, tmp_path, rename):
    expected = train(base(checkpoint_folder), tmp_path, target_modules=THINKER).merge_and_unload()
    rewrite(tmp_path, rename)
    expect_equal(merge(checkpoint_folder, tmp_path), expected)


def test_adapter_in_torch_format_is_merged(checkpoint_folder, tmp_path):
    expected = train(base(checkpoint_folder), tmp_path, target_modules=[f"{LAYER}.self_attn.q_proj"]).merge_and_unload()
    torch.save(load_file(tmp_path / WEIGHTS), tmp_path / "adapter_model.bin")
    (tmp_path / WEIGHTS).unlink()
    expect_equal(merge(checkpoint_folder, tmp_path), expected)


def test_short_target_modules_change_only_the_parts_that_were_trained(checkpoint_folder, tmp_path):
    """Pairs of zeros, in code2wav too, come from layers without a gradient."""
    trained = train(base(checkpoint_folder), tmp_path, target_modules=["q_proj"])
    for name, parameter in trained.named_parameters():
        if "lora_B" in name and ".thinker.model." not in name:
            nn.init.zeros_(parameter)
    trained.save_pretrained(tmp_path)
    assert any("code2wav" in key for key in load_file(tmp_path / WEIGHTS))
    expect_equal(merge(checkpoint_folder, tmp_path), trained.merge_and_unload())


def test_file_with_the_weights_of_one_part_is_merged(checkpoint_folder, tmp_path):
    """A tool writes the names of its config without the part, and the weights of this part only."""
    expected = train(base(checkpoint_folder), tmp_path, target_modules=THINKER).merge_and_unload()
    configure(tmp_path, target_modules=["q_proj"])
    expect_equal(merge(checkpoint_folder, tmp_path), expected)


class Separate(nn.Module):
    """The weights of experts and routers as one linear layer each, as transformers 4 names them."""

    def __init__(self, model: Any):
        super().__init__()
        self.linears = nn.ModuleDict()
        for part, folder in (("thinker", model.thinker.model), ("talker", model.talker.model)):
            for number, layer in enumerate(folder.layers):
                up, down = layer.mlp.experts.gate_up_proj.detach(), layer.mlp.experts.down_proj.detach()
                name = f"{part}.model.layers.{number}.mlp"
                self._add(f"{name}.gate", layer.mlp.gate.weight.detach())
                for i in range(len(up)):
                    gate, half = up[i].chunk(2)
                    for end, weight in (("gate_proj", gate), ("up_proj", half), ("down_proj", down[i])):
                        self._add(f"{name}.experts.{i}.{end}", weight)

    def _add(self, name: str, weight: torch.Tensor) -> None:
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        linear.weight.data = weight.clone()
        self.linears[name.replace(".", "/")] = linear

    def weight(self, name: str) -> torch.Tensor:
        return self.linears[name.replace(".", "/")].weight


@pytest.mark.parametrize("prefix", ["thinker.", "talker.", ""])
def test_adapters_of_experts_and_routers_are_merged(checkpoint_folder, tmp_path, prefix):
    """An adapter of transformers 4 has one pair for each expert."""
    part = prefix or "thinker."
    separate = Separate(base(checkpoint_folder))
    names = [name for name in separate.linears if name.startswith(part.replace(".", "/"))]
    trained = get_peft_model(separate, LoraConfig(r=4, lora_alpha=6, target_modules=[f"linears.{n}" for n in names]))
    for name, parameter in trained.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.1)
    trained.save_pretrained(tmp_path)
    rewrite(tmp_path, lambda key: key.replace("linears.", "").replace("/", ".").replace(part, prefix, 1))
    configure(tmp_path, target_modules=["gate_proj", "up_proj", "down_proj", "gate"])
    expected, found = trained.merge_and_unload(), merge(checkpoint_folder, tmp_path)
    for name in ("thinker", "talker"):
        for number, layer in enumerate(getattr(found, name).model.layers):
            mlp = f"{name}.model.layers.{number}.mlp"
            assert torch.equal(layer.mlp.gate.weight, expected.weight(f"{mlp}.gate"))
            gates, ups = layer.mlp.experts.gate_up_proj.chunk(2, dim=1)
            for end, stack in (("gate_proj", gates), ("up_proj", ups), ("down_proj", layer.mlp.experts.down_proj)):
                for i, weight in enumerate(stack):
                    assert torch.equal(weight, expected.weight(f"{mlp}.experts.{i}.{end}")), (mlp, end, i)


def spoil(folder: Path, key: str, value: torch.Tensor | None) -> None:
    """Set the first weight whose name contains `key` to `value`; remove the weight for None."""
    weights = load_file(folder / WEIGHTS)
    name = next(name for name in weights if key in name)
    if value is None:
        del weights[name]
    else:
        weights[name] = value
    save_file(weights, folder / WEIGHTS, {"format": "pt"})


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "another method": (lambda f: configure(f, peft_type="VERA"), "expected an adapter of the type LORA, got VERA"),
    "changed base": (lambda f: configure(f, init_lora_weights="pissa_niter_4"), "also changed the weights below"),
    "replicated layers": (lambda f: configure(f, layer_replication=[[0, 2]]), "layer_replication cannot be merged"),
    "config of a list": (lambda f: (f / CONFIG).write_text("[]"), f"{CONFIG}: expected a JSON object, got list"),
    "cut config": (lambda f: (f / CONFIG).write_text('{"r": '), f"{CONFIG} is not JSON"),
    "pointer": (lambda f: (f / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\n"), "Git LFS"),
    "cut weights": (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-9]), f"{WEIGHTS} is truncated"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "has no weights: expected adapter_model.safetensors"),
    "broken torch file": (
        lambda f: ((f / WEIGHTS).unlink(), (f / "adapter_model.bin").write_bytes(b"x")),
        "adapter_model.bin cannot be read",
    ),
    "half a pair": (lambda f: spoil(f, "lora_A", None), "missing keys: .*q_proj.lora_A"),
    "another width": (lambda f: spoil(f, "lora_A", torch.ones(4, 7)), r"expected the shape \(4, 64\), got \(4, 7\)"),
    "another rank": (lambda f: configure(f, r=3), "expected the shape"),
    "diverged": (lambda f: spoil(f, "lora_A", torch.full((4, 64), torch.nan)), "is not finite"),
    "shards": (lambda f: spoil(f, "lora_B", torch.zeros(0)), "is empty: the trainer did not gather the shards"),
    "nothing trained": (lambda f: spoil(f, "lora_B", torch.zeros(64, 4)), "it changes nothing"),
    "other layers": (lambda f: rewrite(f, lambda key: key.replace("layers.0", "layers.70")), "unexpected keys: .*70"),
}


@pytest.mark.parametrize(("change", "why"), REFUSED.values(), ids=REFUSED)
def test_adapter_that_does_not_fit_is_refused_before_weights_are_loaded(
    checkpoint_folder, tmp_path, is_loaded, change, why
):
    train(base(checkpoint_folder), tmp_path, target_modules=[f"{LAYER}.self_attn.q_proj"])
    change(tmp_path)
    with pytest.raises(CheckpointError, match=why):
        merge(checkpoint_folder, tmp_path)
    assert not is_loaded
