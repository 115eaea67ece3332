"""Conversation length is unlimited: the oldest ticks are evicted, cost and memory stay constant."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.checkpoint import Checkpoint
from engine.engine import Engine
from tests.oracle import ScaOracle
from tests.sound import official_stream, stream_inputs, with_knock

TICKS = 5000
SETTLED = 1000  # ticks after which memory and positions must stay constant
MEGABYTE = 2**20


@pytest.mark.parametrize("prompt", ["", "You are a kind assistant."])
def test_sliding_context_equals_transformers_with_evicted_positions(checkpoint, settings, extractor, pcm, prompt):
    engine = Engine(checkpoint, settings.with_values(engine={"context_s": 5}))
    context = engine.settings.context_ticks
    oracle = ScaOracle(checkpoint.model, checkpoint.tokenizer, "aiden", prompt)
    engine.open(1, engine.parse_options({"voice": "aiden", "system_prompt": prompt}))
    in_context, evictions = 0, 0
    long = with_knock(np.tile(pcm[5120:], 3)[: 60 * 5120])
    for tick, (served, official) in enumerate(
        zip(stream_inputs(extractor, long), official_stream(extractor, long), strict=True)
    ):
        if in_context == context:
            evicted = max(1, context // 8)
            oracle.evict(1, evicted, in_context)
            in_context -= evicted
            evictions += 1
        tokens, codes = oracle.tick(official)
        in_context += 1
        output = engine.tick({1: served})[1]
        assert output.tokens == tokens, f"text tokens of tick {tick}"
        assert torch.equal(output.codes, codes), f"codes of tick {tick}"
    assert evictions > 20


def test_eviction_changes_the_output(checkpoint: Checkpoint, settings, ticks):
    """Evicted ticks have an effect, which the comparison with transformers could miss otherwise."""
    short = Engine(checkpoint, settings.with_values(engine={"context_s": 5}))
    long = Engine(checkpoint, settings)
    for engine in (short, long):
        engine.open(1, engine.parse_options({}))
    outputs = [
        [engine.tick({1: tick})[1] for tick in itertools.islice(itertools.cycle(ticks), 24)] for engine in (short, long)
    ]
    same = [
        one.tokens == other.tokens and torch.equal(one.codes, other.codes) for one, other in zip(*outputs, strict=True)
    ]
    assert all(same[: short.settings.context_ticks])
    assert not all(same)


def resident_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024


@pytest.mark.long
def test_memory_and_positions_are_constant_over_five_thousand_ticks(checkpoint: Checkpoint, settings, ticks):
    engine = Engine(checkpoint, settings.with_values(engine={"slots": 1}))
    engine.open("old", engine.parse_options({}))
    context = engine.settings.context_ticks
    max_length = context * 6 + settings.engine.prompt_positions
    resident, lengths, frames = [], [], set()
    for number, tick in enumerate(itertools.islice(itertools.cycle(ticks), TICKS)):
        output = engine.tick({"old": tick})["old"]
        frames.add(tuple(output.codes[0].tolist()))
        lengths.append(engine.thinker_length("old"))
        if number % 100 == 0:
            resident.append(resident_bytes())
    assert max(resident[SETTLED // 100 :]) - resident[SETTLED // 100] < 16 * MEGABYTE
    assert max(lengths) <= max_length, "expected positions that the model supports"
    assert max(lengths[SETTLED:]) - min(lengths[SETTLED:]) <= context * 6 // 8 + 6, "expected a constant cost"
    assert len(frames) > TICKS // 2, "expected varied codes"
