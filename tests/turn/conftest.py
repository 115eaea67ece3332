"""Engines of the dialect `turn`: one of each kind per module."""

from __future__ import annotations

import pytest

from engine.checkpoint import Checkpoint
from engine.engine import Engine
from export.mel_frontend import MelFrontend
from tests.turns import TICK


@pytest.fixture(scope="module")
def frontend(extractor) -> MelFrontend:
    return MelFrontend(extractor, TICK)


@pytest.fixture(scope="module")
def engine(checkpoint: Checkpoint, turn_settings) -> Engine:
    return Engine(checkpoint, turn_settings.with_values(engine={"slots": 4}))


@pytest.fixture(scope="module")
def talkative(checkpoint: Checkpoint, turn_settings) -> Engine:
    """Return an engine whose answers do not end before their maximum length."""
    head, end = checkpoint.model.talker.codec_head.weight, checkpoint.model.config.talker_config.codec_eos_token_id
    weight = head[end].clone()
    head.data[end] = 0
    yield Engine(checkpoint, turn_settings.with_values(engine={"slots": 4}, turn={"answer_frames": 4096}))
    head.data[end] = weight


@pytest.fixture(scope="module")
def small(checkpoint: Checkpoint, turn_settings) -> Engine:
    """Return an engine with 12 s of context."""
    return Engine(checkpoint, turn_settings.with_values(engine={"slots": 2, "context_s": 12, "prompt_positions": 64}))
