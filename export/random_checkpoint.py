"""The random checkpoint: Qwen3-Omni's architecture with a few million random weights, and all files of a checkpoint.

The checkpoint is identical on every machine: its weights are uniform draws of numpy's frozen RandomState stream, which
needs no transcendental function, and none depends on a measurement.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen3OmniMoeConfig,
    Qwen3OmniMoeForConditionalGeneration,
    WhisperFeatureExtractor,
)

from export.byte_tokenizer import make_tokenizer
from export.chat_format import modality_ids, turn_ids

SEED = 320
CODEBOOK = 512  # entries of each of the 16 codebooks (2048 in the real one)
SPEAKERS = ("chelsie", "ethan", "aiden")
HIDDEN = 64
TEXT_END, SPEECH_END = 2.5, 2.5  # factors on the logits of the end tokens: an answer takes some seconds
PRINTABLE = 94  # the tokenizer's first tokens are the printable ASCII characters
OUTPUT_CONV = "code2wav.decoder.6.conv"  # name of the last convolution


def make_random_checkpoint(folder: Path) -> Path:
    """Write weights, config, tokenizer, feature extractor and generation config to `folder`, and return it."""
    tokenizer = make_tokenizer()
    config = random_config(tokenizer)
    with torch.device("meta"):
        model = Qwen3OmniMoeForConditionalGeneration(config)
    model = model.to_empty(device="cpu")
    random = np.random.RandomState(SEED)
    for name, parameter in sorted(model.named_parameters()):
        parameter.data = torch.from_numpy(draw(random, name, tuple(parameter.shape)))
    model.thinker.lm_head.weight.data[tokenizer.eos_token_id] *= TEXT_END
    model.talker.codec_head.weight.data[config.talker_config.codec_eos_token_id] *= SPEECH_END
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=False
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=128, return_attention_mask=True).save_pretrained(folder)
    return folder


def random_config(tokenizer: PreTrainedTokenizerFast) -> Qwen3OmniMoeConfig:
    """Return a config with every module of the real architecture, each of the smallest useful size."""
    modalities = modality_ids(tokenizer)
    rope = {"rope_type": "default", "rope_theta": 10_000.0}
    mrope = {**rope, "mrope_section": [4, 2, 2], "interleaved": True, "mrope_interleaved": True}
    attention = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    experts = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64}

    return Qwen3OmniMoeConfig(
        thinker_config={
            **modalities,
            "user_token_id": turn_ids(tokenizer)["user_token_id"],
            "audio_config": {
                "d_model": HIDDEN,
                "encoder_layers": 2,
                "encoder_attention_heads": 4,
                "encoder_ffn_dim": 128,
                "downsample_hidden_size": 16,
                "output_dim": HIDDEN,
            },
            "vision_config": {
                "depth": 1,
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_heads": 2,
                "out_hidden_size": HIDDEN,
                "num_position_embeddings": 16,
                "deepstack_visual_indexes": [0],
            },
            "text_config": {
                "vocab_size": len(tokenizer),
                "hidden_size": HIDDEN,
                "intermediate_size": 128,
                "num_hidden_layers": 3,
                "rope_parameters": mrope,
                **attention,
                **experts,
            },
        },
        talker_config={
            **modalities,
            "thinker_hidden_size": HIDDEN,
            "accept_hidden_layer": 2,
            "num_code_groups": 16,
            "spatial_merge_size": 2,
            "codec_pad_id": CODEBOOK + 100,
            "codec_bos_id": CODEBOOK + 101,
            "codec_eos_token_id": CODEBOOK + 102,
            "codec_nothink_id": CODEBOOK + 107,
            "codec_think_bos_id": CODEBOOK + 108,
            "codec_think_eos_id": CODEBOOK + 109,
            "speaker_id": {name: CODEBOOK + 253 + i for i, name in enumerate(SPEAKERS)},
            "text_config": {
                "vocab_size": CODEBOOK + 1024,
                "hidden_size": HIDDEN,
                "intermediate_size": 128,
                "shared_expert_intermediate_size": 64,
                "num_hidden_layers": 2,
                "norm_topk_prob": True,
                "rope_parameters": mrope,
                **attention,
                **experts,
            },
            "code_predictor_config": {
                "vocab_size": CODEBOOK,
                "hidden_size": HIDDEN,
                "intermediate_size": 128,
                "num_hidden_layers": 2,
                "num_code_groups": 16,
                "rope_parameters": rope,
                **attention,
            },
        },
        code2wav_config={
            "codebook_size": CODEBOOK,
            "hidden_size": HIDDEN,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "decoder_dim": 64,
            "rope_parameters": rope,
        },
        **turn_ids(tokenizer),
        dtype="float32",
    )


def draw(random: np.random.RandomState, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Draw a parameter in float32 that keeps the variance of its input.

    Scales and gates of residual branches are near one half, not near zero: with a branch near zero, no test would
    notice an error in it.
    """
    module, _, leaf = name.rpartition(".")

    def uniform(deviation: float, mean: float = 0.0) -> np.ndarray:
        unit = random.random_sample(shape) * 2.0 - 1.0
        return (mean + math.sqrt(3.0) * deviation * unit).astype(np.float32)

    if leaf in ("alpha", "beta"):  # Snake's log frequency and log magnitude
        return uniform(0.3)
    if leaf in ("gamma", "scale"):  # gates of ConvNeXt blocks and of code2wav's transformer layers
        return uniform(0.1, mean=0.5)
    if leaf == "bias":
        return uniform(0.01 if name == OUTPUT_CONV + ".bias" else 0.1)
    if name.startswith("thinker.audio_tower.conv") and len(shape) == 4:  # GELU halves the signal; 2.0 compensates
        return _without_mean(uniform(2.0 / math.sqrt(math.prod(shape[1:]))))
    if name.startswith(
        ("thinker.audio_tower.conv_out", "thinker.audio_tower.proj2")
    ):  # larger than the position embeddings
        return _without_mean(uniform(4.0 / math.sqrt(shape[1])))
    if len(shape) == 1:  # norms
        return uniform(0.1, mean=1.0)
    if "codec_embedding" in name:  # a frame sums 16 embeddings
        return uniform(0.35)
    if "embed" in name:
        return uniform(1.0)
    if "head" in module:  # rows of unequal norm give argmax a clear margin
        weights = uniform(2.0 / math.sqrt(shape[-1])) * (0.4 + random.random_sample((shape[0], 1))).astype(np.float32)
        if name == "thinker.lm_head.weight":
            weights[PRINTABLE:] = weights[PRINTABLE:] * np.float32(0.7)  # mostly printable text
        return weights
    if module.endswith("gate") and len(shape) == 2:  # routers with a clear margin
        return uniform(2.0 / math.sqrt(shape[-1]))
    if name.startswith("code2wav.decoder."):
        return uniform(_decoder_deviation(name, shape))
    fan_in = shape[-1] if len(shape) == 3 and "experts" in name else math.prod(shape[1:])
    if _is_transposed(name):
        fan_in = shape[0] * 2  # two input frames contribute to an output sample
    return uniform(1.0 / math.sqrt(fan_in))


def _without_mean(filters: np.ndarray) -> np.ndarray:
    """Subtract the mean of each filter [out, ...], so that filters respond to changes and not to the level."""
    mean = filters.mean(axis=tuple(range(1, filters.ndim)), keepdims=True, dtype=np.float64)
    return (filters - mean).astype(np.float32)


def _decoder_deviation(name: str, shape: tuple[int, ...]) -> float:
    """Return the deviation of a convolution's weights in code2wav's decoder: levels near 1, waveform near -20 dBFS."""
    if name == OUTPUT_CONV + ".weight":
        return 0.022 / math.sqrt(math.prod(shape[1:]))
    if ".conv2." in name:  # three residual units in a row would otherwise triple the level
        return 0.7 / math.sqrt(math.prod(shape[1:]))
    if _is_transposed(name):
        return 0.8 / math.sqrt(shape[0] * 2)
    return 1.0 / math.sqrt(math.prod(shape[1:]))


def _is_transposed(name: str) -> bool:
    """Return whether the weight of code2wav belongs to a transposed convolution: [in, out, kernel]."""
    parts = name.split(".")
    in_decoder_block = parts[:2] == ["code2wav", "decoder"] and parts[3:5] == ["block", "1"]
    in_upsampling = parts[:2] == ["code2wav", "upsample"] and parts[3:5] == ["0", "conv"]
    return (in_decoder_block or in_upsampling) and parts[-1] == "weight"
