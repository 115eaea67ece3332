"""A reset erases all state of a conversation, and all state by slot belongs to `SlotState`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from contract.controls import Controls
from engine.cache_layout import Eviction, Evictions
from engine.checkpoint import Checkpoint
from engine.code_predictor import OnnxCodePredictor
from engine.engine import Engine
from engine.slots import SlotState
from tests.inspect_objects import walk

SLOTS = 117
SLOT_DIMENSIONS = {SLOTS, SLOTS + 1, SLOTS + 2}  # without padding, with the padding slot, with the scratch slot
TALKING = {"temperature": 0.9, "text_temperature": 0.8, "system_prompt": "Be kind.", "seed": 5}


def tensors_by_slot(engine: Engine) -> dict[str, torch.Tensor]:
    """Return every tensor and array reachable from the engine that has a slot dimension, by path."""
    found = {}
    for path, value in walk(engine):
        if isinstance(value, torch.Tensor | np.ndarray) and SLOT_DIMENSIONS & set(value.shape):
            found[path] = torch.as_tensor(value)
    return found


def of_slot(tensor: torch.Tensor, slot: int) -> torch.Tensor:
    dimension = next(i for i, size in enumerate(tensor.shape) if size in SLOT_DIMENSIONS)
    return tensor.select(dimension, slot)


@pytest.mark.parametrize("dialect", ["sca", "turn"])
def test_reset_slot_equals_a_new_slot(checkpoint: Checkpoint, settings, predictor, ticks, dialect):
    """The test finds the state by traversal of the engine, so a new attribute cannot be forgotten."""
    options: dict[str, Any] = dict(TALKING)
    if dialect == "turn":
        options |= {"emotion": "all", "answer_frames": 60}
    changed = settings.with_values(engine={"slots": SLOTS, "dialect": dialect, "context_s": 20})
    engine = Engine(checkpoint, changed, OnnxCodePredictor(predictor))
    before = {path: tensor.clone() for path, tensor in tensors_by_slot(engine).items()}
    assert len(before) > 12
    elsewhere = [path for path in before if not path.startswith("engine.slots")]
    assert not elsewhere, "state by slot belongs to SlotState"

    for key in range(3):  # slots 0 to 2: the next conversation has slot 3
        engine.open(key, engine.parse_options({}))
    engine.open("watched", engine.parse_options(options))
    slot = engine.conversation("watched").slot
    for number in range(16):
        controls = Controls(commit=number == 9) if dialect == "turn" else Controls()
        engine.tick({"watched": ticks[number]._replace(controls=controls)})
    now = tensors_by_slot(engine)
    assert now.keys() == before.keys()
    changed_paths = [path for path in now if not torch.equal(of_slot(now[path], slot), of_slot(before[path], slot))]
    assert len(changed_paths) > 8, "expected state to erase"
    assert engine.slots.mel[slot].frames or dialect == "sca"

    engine.close("watched")
    for path, tensor in tensors_by_slot(engine).items():
        assert torch.equal(of_slot(tensor, slot), of_slot(before[path], slot)), path
    assert not engine.slots.mel[slot].frames
    scratch = engine.slots.thinker_cache.buffer[:, SLOTS + 1 :]
    assert not scratch.any(), "expected an erased question about the speaker"


def test_eviction_moves_the_positions_of_each_cache(checkpoint: Checkpoint, turn_settings):
    slots = SlotState(checkpoint, turn_settings.with_values(engine={"slots": 2}))
    evictions = Evictions(thinker=Eviction(kept=3, leaving=5, length=20), talker=Eviction(kept=0, leaving=4, length=12))
    for cache in (slots.thinker_cache, slots.talker_cache):
        cache.buffer.normal_()
    before = [cache.buffer.clone() for cache in (slots.thinker_cache, slots.talker_cache)]
    slots.evict(1, evictions)
    for cache, old, (kept, leaving, length) in zip(
        (slots.thinker_cache, slots.talker_cache), before, evictions, strict=True
    ):
        heads = cache.key_heads
        assert torch.equal(cache.buffer[:, 1, :, :kept], old[:, 1, :, :kept])
        values, expected = (
            cache.buffer[:, 1, heads:, kept : length - leaving],
            old[:, 1, heads:, kept + leaving : length],
        )
        assert torch.equal(values, expected), "values move without a change"
        assert torch.equal(cache.buffer[:, 0], old[:, 0]), "other slots stay unchanged"
