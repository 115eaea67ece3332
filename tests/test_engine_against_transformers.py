"""The engine's tokens and codes in the dialect `sca` equal those of a plain loop over transformers' modules.

The oracle's input is the official feature extractor's log-mel of the raw samples, the engine's the served log-mel.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from engine.checkpoint import Checkpoint
from engine.code_predictor import OnnxCodePredictor
from engine.engine import Engine
from tests.margins import MIN_MARGIN, recorded_margins
from tests.oracle import ScaOracle
from tests.sound import official_stream, stream_inputs, with_knock

PROMPT = "You are a kind assistant. Answer in one sentence, please — 천천히."


@pytest.mark.parametrize(("voice", "prompt", "first"), [("ethan", "", 5000), ("chelsie", PROMPT, 0)])
def test_hundred_ticks_equal_transformers(checkpoint: Checkpoint, engine: Engine, extractor, pcm, voice, prompt, first):
    """The audio begins at a sample from which on no choice of transformers is a matter of rounding."""
    long = with_knock(np.roll(np.tile(pcm[5120:], 5), -first)[: 100 * 5120])
    oracle = ScaOracle(checkpoint.model, checkpoint.tokenizer, voice, prompt)
    with recorded_margins(checkpoint.model) as margins:
        expected = [oracle.tick(official) for official in official_stream(extractor, long)]
    assert len(margins) > 100 * 64, "expected at least the codes"
    assert min(margins) > MIN_MARGIN
    engine.open("alone", engine.parse_options({"voice": voice, "system_prompt": prompt}))
    for tick, (served, (tokens, codes)) in enumerate(zip(stream_inputs(extractor, long), expected, strict=True)):
        output = engine.tick({"alone": served})["alone"]
        assert output.tokens == tokens, f"text tokens of tick {tick}"
        assert torch.equal(output.codes, codes), f"codes of tick {tick}"


def test_served_code_predictor_equals_transformers(checkpoint: Checkpoint, settings, predictor: Path, extractor, pcm):
    engine = Engine(checkpoint, settings, OnnxCodePredictor(predictor))
    oracle = ScaOracle(checkpoint.model, checkpoint.tokenizer, "aiden", PROMPT)
    assert_equal(engine, oracle, extractor, with_knock(np.tile(pcm[5120:], 3)[: 50 * 5120]), 5120)


@pytest.mark.parametrize(("tick_ms", "text_tokens"), [(80, 1), (160, 2), (320, 4)])
def test_other_ticks_and_ratios_equal_transformers(checkpoint, settings, extractor, pcm, tick_ms, text_tokens):
    changed = settings.with_values(audio={"tick_ms": tick_ms}, engine={"text_tokens_per_tick": text_tokens})
    samples = tick_ms * 16
    oracle = ScaOracle(checkpoint.model, checkpoint.tokenizer, "aiden", text_tokens=text_tokens)
    assert_equal(Engine(checkpoint, changed), oracle, extractor, pcm[: 12 * samples], samples)


def assert_equal(engine: Engine, oracle: ScaOracle, extractor, pcm: np.ndarray, samples: int) -> None:
    engine.open("alone", engine.parse_options({"voice": oracle.voice, "system_prompt": oracle.system_prompt}))
    codes = []
    pairs = zip(stream_inputs(extractor, pcm, samples), official_stream(extractor, pcm, samples), strict=True)
    for tick, (served, official) in enumerate(pairs):
        expected_tokens, expected_codes = oracle.tick(official)
        output = engine.tick({"alone": served})["alone"]
        assert output.tokens == expected_tokens, f"text tokens of tick {tick}"
        assert torch.equal(output.codes, expected_codes), f"codes of tick {tick}"
        codes.append(output.codes)
    assert len(torch.cat(codes, dim=1)[0].unique()) > len(codes) // 2, "expected varied codes"


def test_conversations_in_one_batch_equal_transformers(checkpoint: Checkpoint, engine: Engine, extractor, pcm):
    """Three conversations with different sound that start in different ticks."""
    sounds = {
        key: with_knock(pcm[first * 5120 : last * 5120]) for key, (first, last) in
        {"a": (0, 14), "b": (5, 19), "c": (8, 20)}.items()
    }  # fmt: skip
    inputs = {key: stream_inputs(extractor, sound) for key, sound in sounds.items()}
    begin = {"a": 0, "b": 2, "c": 7}
    outputs: dict[str, list] = {key: [] for key in inputs}
    for tick in range(20):
        now = {}
        for key, served in inputs.items():
            if tick == begin[key]:
                engine.open(key, engine.parse_options({"voice": "aiden"}))
            if 0 <= tick - begin[key] < len(served):
                now[key] = served[tick - begin[key]]
            if tick - begin[key] == len(served):
                engine.close(key)
        for key, output in engine.tick(now).items():
            outputs[key].append(output)
    for key, sound in sounds.items():
        oracle = ScaOracle(checkpoint.model, checkpoint.tokenizer, "aiden")
        for tick, (official, output) in enumerate(zip(official_stream(extractor, sound), outputs[key], strict=True)):
            tokens, codes = oracle.tick(official)
            assert output.tokens == tokens, f"conversation {key}, tick {tick}"
            assert torch.equal(output.codes, codes), f"conversation {key}, tick {tick}"
