"""The random checkpoint has Qwen3-Omni's architecture in a small size, and equals itself on every machine."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, Qwen3OmniMoeForConditionalGeneration

from engine.checkpoint import Checkpoint
from export.chat_format import SPECIAL_TOKENS
from export.random_checkpoint import make_random_checkpoint

# Digest of model.safetensors: its weights come from a frozen stream of uniform numbers, without any measurement.
WEIGHTS_SHA256 = "c9cc647db1b1e913602d4ab80efc5b2bf3f768fe3c8dd500003551463aae9844"


def digests(folder) -> dict[str, str]:
    files = (file for file in folder.iterdir() if file.name != "built_from.json")
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_random_checkpoint_is_reproducible_to_the_byte(tmp_path):
    first, second = make_random_checkpoint(tmp_path / "a"), make_random_checkpoint(tmp_path / "b")
    assert digests(first) == digests(second)
    assert digests(first)["model.safetensors"] == WEIGHTS_SHA256


def test_random_checkpoint_has_the_architecture(checkpoint: Checkpoint):
    config = checkpoint.model.config
    assert isinstance(checkpoint.model, Qwen3OmniMoeForConditionalGeneration)
    assert config.talker_config.num_code_groups == config.code2wav_config.num_quantizers == 16
    assert tuple(config.code2wav_config.upsample_rates) == (8, 5, 4, 3)
    assert tuple(config.code2wav_config.upsampling_ratios) == (2, 2)
    assert checkpoint.model.code2wav.total_upsample == 1920
    assert 2e6 < sum(parameter.numel() for parameter in checkpoint.model.parameters()) < 6e6


@pytest.fixture(scope="module")
def question(checkpoint: Checkpoint, extractor, pcm):
    """Return a prompt with a user's spoken turn, as arguments of `generate()`."""
    features = extractor(
        pcm.astype(np.float32) / 32768,
        sampling_rate=16000,
        padding=True,
        truncation=False,
        return_attention_mask=True,
        return_tensors="pt",
    )
    audio = checkpoint.model.thinker.get_audio_features(
        features["input_features"], feature_attention_mask=features["attention_mask"]
    ).last_hidden_state
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": [{"type": "audio"}]}]
    text = checkpoint.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    tokens = checkpoint.tokenizer(text.replace("<|audio_pad|>", "<|audio_pad|>" * len(audio)), return_tensors="pt")
    return {
        "input_ids": tokens["input_ids"],
        "attention_mask": tokens["attention_mask"],
        "input_features": features["input_features"],
        "feature_attention_mask": features["attention_mask"],
    }


def test_generate_returns_speech_that_depends_on_the_audio(checkpoint: Checkpoint, question):
    kwargs = {
        "thinker_max_new_tokens": 12,
        "talker_max_new_tokens": 40,
        "talker_do_sample": False,
        "talker_repetition_penalty": 1.0,
    }
    sequences, waveform = checkpoint.model.generate(**question, speaker="ethan", **kwargs)
    assert sequences.shape[1] > question["input_ids"].shape[1]
    assert 0.03 < waveform.std() < 0.3, "expected neither silence nor noise at full scale"
    assert waveform.abs().max() < 0.95, "expected no clipping"
    _, other = checkpoint.model.generate(
        **{**question, "input_features": question["input_features"].flip(2)}, speaker="ethan", **kwargs
    )
    assert not torch.equal(waveform, other), "expected an answer that depends on the audio"


def test_every_parameter_changes_the_output(checkpoint: Checkpoint, question):
    """A change of any parameter changes the output of its module: no parameter is unused or behind a closed gate."""
    model = checkpoint.model
    codes = torch.randint(0, 512, (1, 16, 24), generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def thinker() -> torch.Tensor:
        return model.thinker(**question).logits

    @torch.no_grad()
    def talker() -> torch.Tensor:
        embeds = model.talker.get_input_embeddings()(codes[:, 0])
        thought = model.thinker.get_input_embeddings()(torch.arange(24)[None])
        embeds = embeds + model.talker.text_projection(thought) + model.talker.hidden_projection(thought)
        hidden = model.talker.model(inputs_embeds=embeds).last_hidden_state
        steps = torch.cat([hidden[:, :1], model.talker.get_input_embeddings()(codes[:, :1, 0])], dim=1)
        tables = model.talker.code_predictor.get_input_embeddings()
        steps = torch.cat([steps, *(table(codes[:, i : i + 1, 1]) for i, table in enumerate(tables))], dim=1)
        predicted = model.talker.code_predictor.model(inputs_embeds=steps).last_hidden_state
        heads = [head(predicted[:, i + 1]) for i, head in enumerate(model.talker.code_predictor.lm_head)]
        return torch.cat(
            [model.talker.codec_head(hidden).flatten(), *(head.flatten() for head in heads), steps.flatten()]
        )

    @torch.no_grad()
    def code2wav() -> torch.Tensor:
        return model.code2wav(codes)

    unused, random = [], torch.Generator().manual_seed(0)
    skipped = ("visual.", "k_proj.bias")  # the prompt has no image; softmax ignores a bias that all keys share
    for module, output in ((model.thinker, thinker), (model.talker, talker), (model.code2wav, code2wav)):
        before = output()
        for name, parameter in module.named_parameters():
            if any(pattern in name for pattern in skipped):
                continue
            original = parameter.data
            # Random factors: norms would undo a single one.
            parameter.data = original * (0.5 + torch.rand(original.shape, generator=random))
            if (output() - before).abs().max() < 1e-4:
                unused.append(name)
            parameter.data = original
    assert not unused, unused


def test_vision_encoder_returns_varied_features(checkpoint: Checkpoint):
    pixels = torch.rand(16, 3 * 2 * 16 * 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = checkpoint.model.thinker.get_image_features(pixels, torch.tensor([[1, 4, 4]])).pooler_output
    assert torch.cat(list(features)).std() > 0.1


@pytest.mark.parametrize("text", ["Hello, wörld!", "오늘 날씨는 어때?", "user system assistant", "\t\n \x00"])
def test_tokenizer_restores_any_text(checkpoint: Checkpoint, text):
    assert checkpoint.tokenizer.decode(checkpoint.tokenizer.encode(text)) == text


def test_special_tokens_and_roles_are_single_tokens(checkpoint_folder, checkpoint: Checkpoint):
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_folder)
    for text in (*SPECIAL_TOKENS, "system", "user", "assistant"):
        assert len(tokenizer.encode(text)) == 1, text
    turn = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], add_generation_prompt=True)
    ids = turn["input_ids"] if not isinstance(turn, list) else turn
    config = checkpoint.model.config
    assert ids[:2] == [config.im_start_token_id, config.user_token_id]
    assert ids[-3:-1] == [config.im_start_token_id, config.assistant_token_id]
    assert ids.count(config.im_end_token_id) == 1
