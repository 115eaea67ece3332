"""A full context."""

from __future__ import annotations

import numpy as np
import torch

from contract.controls import Controls, ItemControl, Role
from engine.checkpoint import Checkpoint
from engine.engine import Engine
from engine.kv_cache import KVCache
from tests.turns import (
    MANUAL,
    TICK,
    Script,
    User,
    asking,
    converse,
    event_of,
    kinds,
    silence,
    spoken_frames,
)


def test_full_context_evicts_whole_turns_oldest_first(small: Engine, frontend, questions):
    def script() -> Script:
        user = User()
        for _ in range(5):
            yield from user.speak(questions[0][: 9 * TICK], Controls(listen=True), Controls(commit=True))
            yield from user.until_quiet()
        yield silence(), Controls(transcript=True)

    call = converse(small, frontend, script(), system_prompt="Be kind.", **MANUAL)
    dropped = [event for event in call.events if event.type == "turns_dropped"]
    assert dropped
    assert "error" not in kinds(call)
    assert kinds(call).count("answer_done") == 5
    transcript = event_of(call, "transcript").turns
    assert len([turn for turn in transcript if turn["role"] == "user"]) == 5 - len(dropped)


def test_eviction_rotates_the_keys_that_move(engine: Engine, checkpoint: Checkpoint):
    """Keys and values that stay are unchanged, except that keys are rotated back by the number of evicted positions."""
    cache = KVCache(checkpoint.model.thinker.model, 2, 64)
    cache.buffer.copy_(torch.randn(cache.buffer.shape, generator=torch.Generator().manual_seed(0)))
    before, kept, leaving, length = cache.buffer.clone(), 5, 12, 40
    cache.evict(1, kept, leaving, length)
    heads = cache.key_heads
    stayed, moved = before[:, 1, :, :kept], before[:, 1, :, kept + leaving : length]
    assert torch.equal(cache.buffer[:, 1, :, :kept], stayed)
    assert torch.equal(cache.buffer[:, 1, heads:, kept : length - leaving], moved[:, heads:]), "values move"
    angle = checkpoint.model.thinker.model.rotary_emb.inv_freq * leaving
    one, two = moved[:, :heads].chunk(2, dim=-1)
    rotated = torch.cat([one * angle.cos() + two * angle.sin(), two * angle.cos() - one * angle.sin()], dim=-1)
    assert (cache.buffer[:, 1, :heads, kept : length - leaving] - rotated).abs().max() < 1e-5, "a rounding"
    assert torch.equal(cache.buffer[:, 0], before[:, 0])


def test_turn_longer_than_the_context_is_dropped_with_an_error(small: Engine, frontend, questions):
    """The conversation continues."""
    long = np.concatenate([questions[0]] * 4)

    def script() -> Script:
        user = User()
        yield from user.speak(long)
        yield from user.speak(questions[0][: 5 * TICK], Controls(listen=True), Controls(commit=True))
        yield from user.wait(25)

    call = converse(small, frontend, script(), **MANUAL)
    error = event_of(call, "error")
    assert error.code == "turn_too_long"
    assert "expected at most 152 positions (engine.context_s)" in error.message
    assert kinds(call)[-2:] == ["answer_started", "answer_done"]


def test_context_full_stop_refuses_the_turn(checkpoint, turn_settings, frontend, questions):
    engine = Engine(checkpoint, turn_settings.with_values(engine={"slots": 1, "context_s": 12, "context_full": "stop"}))

    def script() -> Script:
        user = User()
        for _ in range(4):
            yield from user.speak(questions[0][: 9 * TICK], Controls(listen=True), Controls(commit=True))
            yield from user.until_quiet()

    call = converse(engine, frontend, script(), **MANUAL)
    assert "turns_dropped" not in kinds(call)
    reported = [event for event in call.events if event.type == "error" or getattr(event, "reason", "") == "context"]
    assert reported


def test_answer_ends_when_the_context_is_full(checkpoint, turn_settings, talkative, frontend, questions):
    engine = Engine(
        checkpoint,
        turn_settings.with_values(engine={"slots": 1, "context_s": 12}, turn={"answer_frames": 4096}),
    )
    call = converse(engine, frontend, asking(questions[0][: 9 * TICK], then=40), **MANUAL)
    assert event_of(call, "answer_done").reason == "context"
    assert sum(spoken_frames(call)) > 80


def test_turn_that_an_answer_evicts_before_it_fills_the_context_leaves_the_cache(
    checkpoint, turn_settings, talkative, frontend
):
    """The eviction of a system message frees no position of the talker: the message leaves, and the answer ends."""
    engine = Engine(
        checkpoint,
        turn_settings.with_values(engine={"slots": 1, "context_s": 12}, turn={"answer_frames": 4096}),
    )
    cache, values = engine.slots.thinker_cache, engine.slots.thinker_cache.key_heads

    def script() -> Script:
        user = User()
        user.note((yield silence(), Controls(items=(ItemControl(Role.SYSTEM, "Be brief."),))))
        user.note((yield silence(), Controls(message="What is the weather like?")))
        history = engine.conversation("test").history
        item, typed, _ = history.entries
        begin = item.thinker
        before = cache.buffer[:, 0, values:, begin : begin + typed.thinker].clone()
        yield from user.until_quiet()
        assert history.turns == [typed.turn]
        assert torch.equal(cache.buffer[:, 0, values:, : typed.thinker], before)

    call = converse(engine, frontend, script(), **MANUAL)
    assert event_of(call, "answer_done").reason == "context"
    assert "turns_dropped" in kinds(call)
