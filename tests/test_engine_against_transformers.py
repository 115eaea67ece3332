"""The engine gives what a plain loop over transformers' own modules gives, token for token and code for code."""

from __future__ import annotations

import itertools

import pytest
import torch

from engine.checkpoint import Checkpoint
from engine.engine import Engine
from tests.oracle import ScaOracle

PROMPT = "You are a kind assistant. Answer in one sentence, please — 천천히."


@pytest.mark.parametrize(("voice", "prompt"), [("ethan", ""), ("chelsie", PROMPT)])
def test_hundred_ticks_equal_transformers(checkpoint: Checkpoint, engine: Engine, log_mels, voice, prompt):
    oracle = ScaOracle(checkpoint.model, checkpoint.tokenizer, voice, prompt)
    engine.open("alone", engine.parse_options({"voice": voice, "system_prompt": prompt}))
    codes = []
    for tick, log_mel in enumerate(itertools.islice(itertools.cycle(log_mels), 100)):
        expected_tokens, expected_codes = oracle.tick(log_mel)
        spoken = engine.tick({"alone": log_mel})["alone"]
        assert spoken.tokens == expected_tokens, f"text tokens of tick {tick}"
        assert torch.equal(spoken.codes, expected_codes), f"codes of tick {tick}"
        codes.append(spoken.codes)
    assert len(torch.cat(codes, dim=1)[0].unique()) > 50, "the tiny model should have much to say"


def test_conversations_together_equal_each_alone(checkpoint: Checkpoint, engine: Engine, log_mels):
    """Three conversations, out of step, each hearing something else."""
    heard = {"a": log_mels[0:14], "b": log_mels[5:19], "c": log_mels[8:20]}
    begin = {"a": 0, "b": 2, "c": 7}
    spoken: dict[str, list] = {key: [] for key in heard}
    for tick in range(20):
        now = {}
        for key, mels in heard.items():
            if tick == begin[key]:
                engine.open(key, engine.parse_options({"voice": "aiden"}))
            if 0 <= tick - begin[key] < len(mels):
                now[key] = mels[tick - begin[key]]
            if tick - begin[key] == len(mels):
                engine.close(key)
        for key, said in engine.tick(now).items():
            spoken[key].append(said)
    for key, mels in heard.items():
        oracle = ScaOracle(checkpoint.model, checkpoint.tokenizer, "aiden")
        for tick, (mel, said) in enumerate(zip(mels, spoken[key], strict=True)):
            tokens, codes = oracle.tick(mel)
            assert said.tokens == tokens, f"conversation {key}, tick {tick}"
            assert torch.equal(said.codes, codes), f"conversation {key}, tick {tick}"


@pytest.mark.parametrize(("tick_ms", "text_tokens"), [(80, 1), (160, 2), (320, 4)])
def test_other_ticks_and_ratios_equal_transformers(checkpoint, settings, extractor, pcm, tick_ms, text_tokens):
    from tests.conftest import stream_log_mels

    changed = settings.with_values(audio={"tick_ms": tick_ms}, engine={"text_tokens_per_tick": text_tokens})
    engine = Engine(checkpoint, changed)
    oracle = ScaOracle(checkpoint.model, checkpoint.tokenizer, "aiden", text_tokens=text_tokens)
    engine.open(1, engine.parse_options({"voice": "aiden"}))
    for log_mel in stream_log_mels(extractor, pcm, samples=tick_ms * 16)[:12]:
        tokens, codes = oracle.tick(log_mel)
        spoken = engine.tick({1: log_mel})[1]
        assert spoken.tokens == tokens
        assert torch.equal(spoken.codes, codes)
