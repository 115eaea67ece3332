"""Qwen3-Omni-30B-A3B's architecture with random weights, made on the device: speed needs no download.

The numbers are those of the published checkpoint's config.json (Qwen/Qwen3-Omni-30B-A3B-Instruct). The tokenizer is
the random checkpoint's: what is said means nothing anyhow.
"""

from __future__ import annotations

import torch
from transformers import Qwen3OmniMoeConfig, Qwen3OmniMoeForConditionalGeneration, WhisperFeatureExtractor

from engine.checkpoint import Checkpoint, take_device
from export.byte_tokenizer import make_tokenizer

SPREAD = 0.02  # standard deviation of the weights, the config's initializer_range
ROPE = {"rope_type": "default", "rope_theta": 1_000_000.0}
MROPE = {**ROPE, "mrope_section": [24, 20, 20], "interleaved": True, "mrope_interleaved": True}


def full_config() -> Qwen3OmniMoeConfig:
    """The published architecture."""
    modality_ids = {
        "audio_token_id": 151675,
        "image_token_id": 151655,
        "video_token_id": 151656,
        "vision_start_token_id": 151652,
        "audio_start_token_id": 151669,
    }
    return Qwen3OmniMoeConfig(
        thinker_config={
            **modality_ids,
            "user_token_id": 872,
            "audio_config": {"output_dim": 2048},  # all else is transformers' default
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
            **modality_ids,
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
        tts_bos_token_id=151672,
        tts_pad_token_id=151671,
    )


def full_checkpoint(device: str, dtype: torch.dtype, config: Qwen3OmniMoeConfig | None = None) -> Checkpoint:
    """The model on the device, without what the engine does not run: eyes, and code2wav."""
    take_device(device)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            model = Qwen3OmniMoeForConditionalGeneration(config or full_config())
        model.code2wav = None
        model.thinker.visual = None
        random = torch.Generator(device).manual_seed(0)
        for module in model.modules():
            _make(module, device, random)
    finally:
        torch.set_default_dtype(before)
    extractor = WhisperFeatureExtractor(feature_size=128, return_attention_mask=True)
    return Checkpoint(model.eval().requires_grad_(False), make_tokenizer(), extractor)


def _make(module: torch.nn.Module, device: str, random: torch.Generator) -> None:
    """Gives a module's own tensors a place and values; norms are ones, buffers what their module computes."""
    for name, parameter in module.named_parameters(recurse=False):
        values = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
        if name == "weight" and parameter.ndim == 1:
            values.fill_(1.0)
        else:
            values.normal_(std=SPREAD, generator=random)
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
