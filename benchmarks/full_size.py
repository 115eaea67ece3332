"""Qwen3-Omni-30B-A3B's architecture with random weights, to measure speed without a download.

    python -m benchmarks.full_size FOLDER    writes a checkpoint that can be served, 71 GB

The sizes are those of the published checkpoint's config.json (Qwen/Qwen3-Omni-30B-A3B-Instruct). The tokenizer and
the ids of special tokens are the random checkpoint's.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from safetensors.torch import save_file
from transformers import (
    GenerationConfig,
    Qwen3OmniMoeConfig,
    Qwen3OmniMoeForConditionalGeneration,
    WhisperFeatureExtractor,
)

from engine.checkpoint import Checkpoint, resolve_device, select_device
from engine.checkpoint_files import INDEX_FILE
from export.byte_tokenizer import make_tokenizer
from export.chat_format import modality_ids, turn_ids
from export.random_checkpoint import SEED, draw

WEIGHT_STD = 0.02  # standard deviation of the weights, the config's initializer_range
SHARD_BYTES = 4 * 10**9
ROPE = {"rope_type": "default", "rope_theta": 1_000_000.0}
MROPE = {**ROPE, "mrope_section": [24, 20, 20], "interleaved": True, "mrope_interleaved": True}


def full_config() -> Qwen3OmniMoeConfig:
    """Return the published architecture."""
    tokenizer = make_tokenizer()
    modalities = modality_ids(tokenizer)
    return Qwen3OmniMoeConfig(
        thinker_config={
            **modalities,
            "user_token_id": turn_ids(tokenizer)["user_token_id"],
            "audio_config": {"output_dim": 2048},  # other sizes are transformers' defaults
            "vision_config": {"out_hidden_size": 2048},
            "text_config": {
                "vocab_size": 152064,
                "hidden_size": 2048,
                "num_hidden_layers": 48,
                "num_attention_heads": 32,
                "num_key_value_heads": 4,
                "head_dim": 128,
                "num_experts": 128,
                "num_experts_per_tok": 8,
                "moe_intermediate_size": 768,
                "norm_topk_prob": True,
                "max_position_embeddings": 65536,
                "rope_parameters": MROPE,
            },
        },
        talker_config={
            **modalities,
            "thinker_hidden_size": 2048,
            "accept_hidden_layer": 24,
            "num_code_groups": 16,
            "spatial_merge_size": 2,
            "codec_pad_id": 2148,
            "codec_bos_id": 2149,
            "codec_eos_token_id": 2150,
            "codec_nothink_id": 2155,
            "codec_think_bos_id": 2156,
            "codec_think_eos_id": 2157,
            "speaker_id": {"chelsie": 2301, "ethan": 2302, "aiden": 2303},
            "text_config": {
                "vocab_size": 3072,
                "hidden_size": 1024,
                "num_hidden_layers": 20,
                "num_attention_heads": 16,
                "num_key_value_heads": 2,
                "head_dim": 128,
                "num_experts": 128,
                "num_experts_per_tok": 6,
                "moe_intermediate_size": 384,
                "shared_expert_intermediate_size": 768,
                "norm_topk_prob": True,
                "max_position_embeddings": 65536,
                "rope_parameters": MROPE,
            },
            "code_predictor_config": {
                "vocab_size": 2048,
                "hidden_size": 1024,
                "intermediate_size": 3072,
                "num_hidden_layers": 5,
                "num_attention_heads": 16,
                "num_key_value_heads": 8,
                "head_dim": 128,
                "num_code_groups": 16,
                "rope_parameters": ROPE,
            },
        },
        **turn_ids(tokenizer),
    )


def full_checkpoint(device: str, dtype: torch.dtype, config: Qwen3OmniMoeConfig | None = None) -> Checkpoint:
    """Create the model on the device, without the parts that the engine does not run: vision encoder and code2wav."""
    select_device(device)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            model = Qwen3OmniMoeForConditionalGeneration(config or full_config())
        model.code2wav = None
        model.thinker.visual = None
        random = torch.Generator(device).manual_seed(0)
        for module in model.modules():
            _materialise(module, device, random)
    finally:
        torch.set_default_dtype(before)
    extractor = WhisperFeatureExtractor(feature_size=128, return_attention_mask=True)
    return Checkpoint(model.eval().requires_grad_(False), make_tokenizer(), extractor)


def _materialise(module: torch.nn.Module, device: str, random: torch.Generator) -> None:
    """Allocate and fill a module's own tensors: norms with ones, buffers with the values that their module computes."""
    for name, parameter in module.named_parameters(recurse=False):
        values = _values(name, parameter, parameter.dtype, device, random)
        setattr(module, name, torch.nn.Parameter(values, requires_grad=False))
    if not list(module.named_buffers(recurse=False)):
        return
    with torch.device(device):
        if hasattr(module, "config"):  # rotary frequencies
            fresh = type(module)(module.config)
        else:  # the audio encoder's sinusoids
            fresh = type(module)(module.length, module.channels, module.max_timescale)
    for name, buffer in fresh.named_buffers(recurse=False):
        module.register_buffer(name, buffer.to(device), persistent=False)


def _values(
    name: str, parameter: torch.Tensor, dtype: torch.dtype, device: str, random: torch.Generator
) -> torch.Tensor:
    """Return ones for a norm, or normally distributed values."""
    values = torch.empty(parameter.shape, dtype=dtype, device=device)
    if name == "weight" and parameter.ndim == 1:
        return values.fill_(1.0)
    return values.normal_(std=WEIGHT_STD, generator=random)


def write_checkpoint(folder: Path, device: str, dtype: torch.dtype, config: Qwen3OmniMoeConfig | None = None) -> None:
    """Write the whole model as files that `from_pretrained` loads, with one shard in memory at a time.

    code2wav is scaled as in the random checkpoint: with weights of `WEIGHT_STD` its waveform would be silence.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = config or full_config()
    config.dtype = dtype
    with torch.device("meta"):
        model = Qwen3OmniMoeForConditionalGeneration(config)
    random, code2wav_random = torch.Generator(device).manual_seed(0), np.random.RandomState(SEED)
    files: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}

    def save() -> None:
        file = f"model-{len(set(files.values())):05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        files.update(dict.fromkeys(shard, file))
        shard.clear()

    for name, parameter in track(list(model.named_parameters()), description="random weights"):
        if name.startswith("code2wav."):
            values = torch.from_numpy(draw(code2wav_random, name, tuple(parameter.shape))).to(dtype)
        else:
            values = _values(name.rpartition(".")[2], parameter, dtype, device, random)
        shard[name] = values.cpu()
        if sum(tensor.nbytes for tensor in shard.values()) > SHARD_BYTES:
            save()
    save()
    (folder / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": files}), encoding="utf-8")
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder)
    GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id).save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=128, return_attention_mask=True).save_pretrained(folder)


def main() -> None:
    """Write the checkpoint in bfloat16, with weights drawn on the GPU if one is available."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    write_checkpoint(parser.parse_args().folder, resolve_device("auto"), torch.bfloat16)


if __name__ == "__main__":
    main()
