"""A conversation has no end: its oldest ticks leave, its cost and its memory stay."""

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
SETTLED = 1000  # ticks after which nothing may grow any more
MEGABYTE = 2**20


@pytest.mark.parametrize("prompt", ["", "You are a kind assistant."])
def test_a_sliding_context_equals_transformers_with_its_caches_cut(checkpoint, settings, extractor, pcm, prompt):
    engine = Engine(checkpoint, settings.with_values(engine={"context_s": 5}))
    context = engine.settings.context_ticks
    oracle = ScaOracle(checkpoint.model, checkpoint.tokenizer, "aiden", prompt)
    engine.open(1, engine.parse_options({"voice": "aiden", "system_prompt": prompt}))
    held, slides = 0, 0
    long = with_knock(np.tile(pcm[5120:], 3)[: 60 * 5120])
    for tick, (heard, official) in enumerate(
        zip(stream_inputs(extractor, long), official_stream(extractor, long), strict=True)
    ):
        if held == context:
            leaving = max(1, context // 8)
            oracle.forget(1, leaving, held)
            held -= leaving
            slides += 1
        tokens, codes = oracle.tick(official)
        held += 1
        spoken = engine.tick({1: heard})[1]
        assert spoken.tokens == tokens, f"text tokens of tick {tick}"
        assert torch.equal(spoken.codes, codes), f"codes of tick {tick}"
    assert slides > 20


def test_a_sliding_context_changes_what_is_said(checkpoint: Checkpoint, settings, ticks):
    """So that the test above has something to find."""
    short = Engine(checkpoint, settings.with_values(engine={"context_s": 5}))
    long = Engine(checkpoint, settings)
    for engine in (short, long):
        engine.open(1, engine.parse_options({}))
    said = [[engine.tick({1: m})[1] for m in itertools.islice(itertools.cycle(ticks), 24)] for engine in (short, long)]
    same = [
        one.tokens == other.tokens and torch.equal(one.codes, other.codes) for one, other in zip(*said, strict=True)
    ]
    assert all(same[: short.settings.context_ticks])
    assert not all(same)


def resident_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024


@pytest.mark.long
def test_five_thousand_ticks_grow_nothing(checkpoint: Checkpoint, settings, ticks):
    engine = Engine(checkpoint, settings.with_values(engine={"slots": 1}))
    engine.open("old", engine.parse_options({}))
    context = engine.settings.context_ticks
    reach = context * 6 + settings.engine.prompt_positions
    resident, furthest, spoken = [], [], set()
    for tick, log_mel in enumerate(itertools.islice(itertools.cycle(ticks), TICKS)):
        said = engine.tick({"old": log_mel})["old"]
        spoken.add(tuple(said.codes[0].tolist()))
        furthest.append(engine.thinker_length("old"))
        if tick % 100 == 0:
            resident.append(resident_bytes())
    assert max(resident[SETTLED // 100 :]) - resident[SETTLED // 100] < 16 * MEGABYTE
    assert max(furthest) <= reach, "positions stay in the range that the model knows"
    assert max(furthest[SETTLED:]) - min(furthest[SETTLED:]) <= context * 6 // 8 + 6, "and so does the cost"
    assert len(spoken) > TICKS // 2, "it still has something to say"
