"""The full-size model made without a checkpoint, and the floor that its bytes set."""

from __future__ import annotations

import pytest
import torch

from benchmarks import floor, full_size
from benchmarks.floor import bandwidth, tick_bytes
from benchmarks.full_size import full_checkpoint, full_config
from engine.checkpoint import Checkpoint, load_checkpoint
from engine.engine import Engine
from engine.tick import TickOutput
from engine.turn.chat_template import ChatTemplate
from export.byte_tokenizer import make_tokenizer
from export.random_checkpoint import random_config
from export.weights import load_code2wav


def test_full_size_has_the_published_number_of_parameters():
    """30.5 billion in the thinker's text model, as in the checkpoint's card; 35 billion in all."""
    from transformers import Qwen3OmniMoeForConditionalGeneration

    with torch.device("meta"):
        model = Qwen3OmniMoeForConditionalGeneration(full_config())
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    text = sum(p.numel() for part in (model.thinker.model, model.thinker.lm_head) for p in part.parameters())
    assert round(text / 1e9, 1) == 30.5
    assert round(sum(count.values()) / 1e9, 1) == 35.3


def test_full_size_has_a_chat_template():
    """The config names the special tokens that the tokenizer has."""
    template = ChatTemplate(make_tokenizer(), full_config())
    assert len(template.answer_opening) == 3


def test_full_size_is_written_as_a_complete_checkpoint(tmp_path, settings, checkpoint: Checkpoint, monkeypatch):
    """The model has the random checkpoint's sizes, and is written in several shards."""
    monkeypatch.setattr(full_size, "SHARD_BYTES", 3_000_000)
    full_size.write_checkpoint(tmp_path, "cpu", torch.float32, random_config(checkpoint.tokenizer))
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    loaded = load_checkpoint(tmp_path, settings.qwen)
    assert loaded.model.generation_config.eos_token_id == checkpoint.tokenizer.eos_token_id
    waveform = load_code2wav(str(tmp_path))(torch.randint(0, 512, (1, 16, 20)))
    assert 0.01 < float(waveform.std()) < 0.3


def test_weights_made_on_the_device_are_usable(checkpoint: Checkpoint, settings, ticks):
    made = full_checkpoint("cpu", torch.float32, random_config(checkpoint.tokenizer))
    engine = Engine(made, settings)
    engine.open(1, engine.parse_options({}))
    output = engine.tick({1: ticks[0]})[1]
    assert isinstance(output, TickOutput)
    reference, found = checkpoint.model.thinker.model.rotary_emb, made.model.thinker.model.rotary_emb
    assert torch.equal(reference.inv_freq, found.inv_freq)


def test_floor_counts_weights_once_per_step(checkpoint: Checkpoint, settings):
    """Calculated by hand for one new conversation: two of eight experts per token, all other weights once."""
    model = checkpoint.model
    sizes = {name: p.nbytes for name, p in model.named_parameters()}

    def total(prefix: str, *without: str) -> float:
        return sum(
            size for name, size in sizes.items() if name.startswith(prefix) and not any(w in name for w in without)
        )

    def decoder(prefix: str, tokens: int) -> float:
        experts = sum(size for name, size in sizes.items() if name.startswith(prefix) and ".experts." in name)
        return total(f"{prefix}layers", ".experts.") + experts * (1 - (1 - 2 / 8) ** tokens)

    thinker, talker, predictor = "thinker.model.", "talker.model.", "talker.code_predictor."
    expected = total("thinker.audio_tower") + decoder(thinker, 4) + 2 * (decoder(thinker, 1) + total("thinker.lm_head"))
    frame = decoder(talker, 1) + total("talker.codec_head") + 15 * total(f"{predictor}model.layers")
    frame += total(f"{predictor}lm_head")
    opening = 5 * 2 * 2 * 16 * 4 * 2  # positions, keys and values, heads, size, bytes, layers
    expected += 4 * (frame + opening)
    assert tick_bytes(model, settings, 1, age_s=0) == pytest.approx(expected)
    assert tick_bytes(model, settings, 2, age_s=60) > tick_bytes(model, settings, 2, age_s=0)
    assert bandwidth(torch.device("cpu")) > 1e8


def test_longer_turns_and_more_answers_have_more_bytes(checkpoint, turn_settings):
    one, longer, more = (
        floor.turn_bytes(checkpoint.model, turn_settings, conversations, tokens)
        for conversations, tokens in ((1, 10), (1, 100), (8, 10))
    )
    assert one < longer
    assert one < more
