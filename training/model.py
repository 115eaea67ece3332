"""Configuration and tokenizer of the default checkpoint: `qwen3_omni_moe` with under six million parameters."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3OmniMoeConfig

from export.chat_format import ROLES, modality_ids, turn_ids, with_chat_format
from training import grammar

VOCABULARY = 900  # tokens without the special ones
CODEBOOK = 128  # entries of each of the 16 codebooks
CODEBOOKS = 16
THINKER, TALKER, CODEC = 160, 128, 128  # hidden sizes
VOICE = "ethan"  # the default voice of clients


def load_tokenizer(work: Path) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a run, created at first use: a later change of the grammar must not change its tokens."""
    folder = work / "tokenizer"
    if not folder.exists():
        make_tokenizer().save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def make_tokenizer(seed: int = 1) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on users' and the barista's sentences; other text is split into shorter pieces."""
    draw = random.Random(seed)

    def corpus() -> Iterator[str]:
        for _ in range(20_000):
            barista = grammar.Barista()
            for _ in range(draw.randrange(1, 5)):
                utterance = grammar.utterance(draw, grammar.next_kind(draw, barista))
                yield utterance.text
                yield utterance.text.capitalize() + "."
                yield barista.answer(utterance)
        for role in ROLES:
            for _ in range(20_000):
                yield role

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    return with_chat_format(tokenizer)


def make_config(tokenizer: PreTrainedTokenizerFast) -> Qwen3OmniMoeConfig:
    """Return the configuration: every module of the real architecture, sized for two CPU cores and 12 MB in 16 bits."""
    modalities = modality_ids(tokenizer)
    rope = {"rope_type": "default", "rope_theta": 10_000.0}
    mrope = {**rope, "mrope_section": [8, 4, 4], "interleaved": True, "mrope_interleaved": True}
    attention = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
    experts = {"num_experts": 4, "num_experts_per_tok": 2}

    return Qwen3OmniMoeConfig(
        thinker_config={
            **modalities,
            "user_token_id": turn_ids(tokenizer)["user_token_id"],
            "audio_config": {
                "d_model": 160,
                "encoder_layers": 5,
                "encoder_attention_heads": 4,
                "encoder_ffn_dim": 448,
                "downsample_hidden_size": 32,
                "output_dim": THINKER,
                "dropout": 0.0,
            },
            "vision_config": {
                "depth": 1,
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_heads": 2,
                "patch_size": 4,
                "out_hidden_size": THINKER,
                "num_position_embeddings": 16,
                "deepstack_visual_indexes": [],
            },
            "text_config": {
                "vocab_size": len(tokenizer),
                "hidden_size": THINKER,
                "intermediate_size": 128,
                "moe_intermediate_size": 72,
                "num_hidden_layers": 4,
                "rope_parameters": mrope,
                **attention,
                **experts,
            },
        },
        talker_config={
            **modalities,
            "thinker_hidden_size": THINKER,
            "accept_hidden_layer": 3,
            "num_code_groups": CODEBOOKS,
            "spatial_merge_size": 2,
            "codec_pad_id": CODEBOOK + 100,
            "codec_bos_id": CODEBOOK + 101,
            "codec_eos_token_id": CODEBOOK + 102,
            "codec_nothink_id": CODEBOOK + 107,
            "codec_think_bos_id": CODEBOOK + 108,
            "codec_think_eos_id": CODEBOOK + 109,
            "speaker_id": {VOICE: CODEBOOK + 253},
            "text_config": {
                "vocab_size": CODEBOOK + 1024,  # generate() suppresses the last 1024 codes except the end
                "hidden_size": TALKER,
                "intermediate_size": 160,
                "moe_intermediate_size": 64,
                "shared_expert_intermediate_size": 64,
                "num_hidden_layers": 4,
                "norm_topk_prob": True,
                "rope_parameters": mrope,
                **attention,
                **experts,
            },
            "code_predictor_config": {
                "vocab_size": CODEBOOK,
                "hidden_size": TALKER,
                "intermediate_size": 256,
                "num_hidden_layers": 2,
                "num_code_groups": CODEBOOKS,
                "rope_parameters": rope,
                **attention,
            },
        },
        code2wav_config={
            "codebook_size": CODEBOOK,
            "hidden_size": CODEC,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "decoder_dim": 160,
            "sliding_window": 32,  # codec frames; training clips are longer
            "num_quantizers": CODEBOOKS,
            "rope_parameters": rope,
        },
        **turn_ids(tokenizer),
        dtype="float32",
    )
