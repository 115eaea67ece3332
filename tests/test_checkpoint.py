"""A checkpoint is complete and compatible, or it is refused with the reason."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import Qwen3OmniMoeForConditionalGeneration

from engine.checkpoint import _expect_rotary_buffers, load_checkpoint, resolve_device
from engine.errors import CheckpointError
from export.weights import load_code2wav
from tests.conftest import CPU

ADAPTED = "thinker.model.layers.0.self_attn.q_proj"


@pytest.fixture
def copy(checkpoint_folder, tmp_path) -> Path:
    return Path(shutil.copytree(checkpoint_folder, tmp_path / "checkpoint"))


def remove_weights(folder: Path, prefix: str) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(
        {k: v for k, v in weights.items() if not k.startswith(prefix)}, folder / "model.safetensors", {"format": "pt"}
    )


@pytest.mark.parametrize(
    "prefix", ["thinker.model.layers.1.mlp.experts", "talker.code_predictor.lm_head.3", "code2wav.up"]
)
def test_error_names_missing_weights(copy, prefix):
    remove_weights(copy, prefix)
    with pytest.raises(CheckpointError, match=f"incomplete: missing keys: {prefix}"):
        load_checkpoint(copy, CPU)


def test_export_fails_if_weights_of_code2wav_are_missing(copy):
    remove_weights(copy, "code2wav.decoder.0")
    with pytest.raises(CheckpointError, match=r"(?s)lacks weights of code2wav.*decoder\.0"):
        load_code2wav(str(copy))


def test_error_names_weights_of_another_shape(copy):
    weights = load_file(copy / "model.safetensors")
    weights["thinker.lm_head.weight"] = weights["thinker.lm_head.weight"][:-1].contiguous()
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"incomplete: mismatched keys: thinker\.lm_head\.weight"):
        load_checkpoint(copy, CPU)


def test_chat_template_is_read_from_the_file_of_the_processor(copy):
    """The stock checkpoint has this file; a checkpoint without any template is refused."""
    template = (copy / "chat_template.jinja").read_text()
    (copy / "chat_template.jinja").unlink()
    with pytest.raises(CheckpointError, match="has no chat template"):
        load_checkpoint(copy, CPU)
    (copy / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    assert load_checkpoint(copy, CPU).tokenizer.chat_template == template


def test_other_model_type_is_refused(copy):
    (copy / "config.json").write_text(json.dumps({"model_type": "whisper"}))
    with pytest.raises(CheckpointError, match="expected model type 'qwen3_omni_moe', got 'whisper'"):
        load_checkpoint(copy, CPU)


def test_folder_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint at .*, expected a folder with config.json or a hub name"):
        load_checkpoint(tmp_path, CPU)


def test_checkpoint_without_a_talker_is_refused(copy):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "enable_audio_output": False}))
    with pytest.raises(CheckpointError, match="has no talker"):
        load_checkpoint(copy, CPU)


def test_rotary_frequencies_of_zero_are_refused(copy):
    model = load_checkpoint(copy, CPU).model
    model.talker.model.rotary_emb.inv_freq.zero_()
    with pytest.raises(CheckpointError, match=r"talker\.model\.rotary_emb\.inv_freq are not positive numbers"):
        _expect_rotary_buffers(copy, model)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_missing_cuda_device_is_refused():
    with pytest.raises(CheckpointError, match="qwen.device_map is 'cuda:1', but this machine has no CUDA device"):
        resolve_device("cuda:1")


def test_checkpoint_is_loaded_in_the_dtype_of_the_settings(checkpoint_folder):
    loaded = load_checkpoint(checkpoint_folder, dataclasses.replace(CPU, torch_dtype="bfloat16"))
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.bfloat16}


def test_lora_adapter_is_merged(checkpoint_folder, tmp_path):
    base = Qwen3OmniMoeForConditionalGeneration.from_pretrained(checkpoint_folder, dtype=torch.float32)
    name = ADAPTED
    before = base.get_submodule(name).weight.detach().clone()
    adapted = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=[name]))
    layer = adapted.base_model.model.get_submodule(name)
    torch.manual_seed(0)
    torch.nn.init.normal_(layer.lora_B["default"].weight)
    expected = before + 2.0 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight  # alpha / r = 2
    adapted.save_pretrained(tmp_path / "lora")

    merged = load_checkpoint(checkpoint_folder, dataclasses.replace(CPU, lora=str(tmp_path / "lora"))).model
    assert torch.allclose(merged.get_submodule(name).weight, expected, atol=1e-6)
    assert not torch.allclose(expected, before, atol=1e-2)


def test_lora_adapter_with_other_names_is_refused(checkpoint_folder, tmp_path):
    """An adapter trained on a separate thinker has other names, for which peft would merge zeros without an error."""
    base = Qwen3OmniMoeForConditionalGeneration.from_pretrained(checkpoint_folder, dtype=torch.float32)
    get_peft_model(base, LoraConfig(r=4, target_modules=[ADAPTED])).save_pretrained(tmp_path)
    adapter = load_file(tmp_path / "adapter_model.safetensors")
    renamed = {key.replace("thinker.", ""): tensor for key, tensor in adapter.items()}
    save_file(renamed, tmp_path / "adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="does not fit the checkpoint: missing keys: .*lora_A"):
        load_checkpoint(checkpoint_folder, dataclasses.replace(CPU, lora=str(tmp_path)))


def adapter_with_full_weight(base, folder: Path, name: str) -> str:
    """Save an adapter that also contains a full weight of ones called `name`; return its folder."""
    head = torch.ones_like(base.thinker.lm_head.weight)
    get_peft_model(base, LoraConfig(r=4, target_modules=[ADAPTED])).save_pretrained(folder)
    adapter = load_file(folder / "adapter_model.safetensors")
    adapter[f"base_model.model.{name}.weight"] = head
    save_file(adapter, folder / "adapter_model.safetensors", {"format": "pt"})
    return str(folder)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("thinker.model.layers.0.self_attn.new_proj.lora_A", "unexpected keys: .*new_proj"),
        ("code2wav.decoder.0.conv", "it adapts code2wav"),
    ],
)
def test_lora_adapter_with_unsupported_weights_is_refused(checkpoint_folder, tmp_path, name, why):
    base = Qwen3OmniMoeForConditionalGeneration.from_pretrained(checkpoint_folder, dtype=torch.float32)
    lora = adapter_with_full_weight(base, tmp_path, name)
    with pytest.raises(CheckpointError, match=f"does not fit the checkpoint: {why}"):
        load_checkpoint(checkpoint_folder, dataclasses.replace(CPU, lora=lora))


def test_full_weight_in_a_lora_adapter_is_loaded(checkpoint_folder, tmp_path):
    base = Qwen3OmniMoeForConditionalGeneration.from_pretrained(checkpoint_folder, dtype=torch.float32)
    lora = adapter_with_full_weight(base, tmp_path, "thinker.lm_head")
    loaded = load_checkpoint(checkpoint_folder, dataclasses.replace(CPU, lora=lora)).model
    assert (loaded.thinker.lm_head.weight == 1).all()


def test_lora_adapter_may_name_modules_by_a_regular_expression(checkpoint_folder, tmp_path):
    """Trainers write such expressions; the talker's projections of the same name must stay unchanged."""
    base = Qwen3OmniMoeForConditionalGeneration.from_pretrained(checkpoint_folder, dtype=torch.float32)
    names = [name for name, _ in base.named_modules() if re.fullmatch(r"thinker\.model\..*\.[qk]_proj", name)]
    before = base.get_submodule(ADAPTED).weight.detach().clone()
    adapted = get_peft_model(base, LoraConfig(r=4, target_modules=names))
    torch.nn.init.ones_(adapted.base_model.model.get_submodule(ADAPTED).lora_B["default"].weight)
    adapted.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    config["target_modules"] = r"^(thinker\.model)(?=\.).*\.(q_proj|k_proj)$"
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    merged = load_checkpoint(checkpoint_folder, dataclasses.replace(CPU, lora=str(tmp_path))).model
    assert not torch.allclose(merged.get_submodule(ADAPTED).weight, before, atol=1e-3)


def test_lora_adapter_of_code2wav_is_refused(checkpoint_folder, tmp_path):
    base = Qwen3OmniMoeForConditionalGeneration.from_pretrained(checkpoint_folder, dtype=torch.float32)
    name = "code2wav.pre_transformer.layers.0.self_attn.q_proj"
    get_peft_model(base, LoraConfig(r=4, target_modules=[name])).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="it adapts code2wav, which is exported to ONNX without adapters"):
        load_checkpoint(checkpoint_folder, dataclasses.replace(CPU, lora=str(tmp_path)))


def test_lora_folder_without_an_adapter_is_refused(checkpoint_folder, tmp_path):
    with pytest.raises(CheckpointError, match="expected a folder with adapter_config.json"):
        load_checkpoint(checkpoint_folder, dataclasses.replace(CPU, lora=str(tmp_path)))
