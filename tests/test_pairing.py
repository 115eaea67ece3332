"""Promises of a Realtime conversation, with the engine's own state machine behind it and ticks in flight."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from frontend.tick import TickError, TickIn
from tests.pairing import Pair, silence, speech
from tests.random_client import RandomClient
from tests.scripted_engine import CONFIG, ScriptedEngine

VAD = {"type": "server_vad", "create_response": True, "interrupt_response": True, "silence_duration_ms": 500}
INSTRUCTIONS = [("system", "Be brief."), ("system", "Be kind.")]  # messages that are no items of the client
SILENCE = bytes(10_240)  # a tick
SMALL_CONTEXT = {"thinker_positions": 160, "talker_positions": 150}


def converse(seed: int) -> None:
    """Assert the promises in one random conversation."""
    chance = random.Random(seed)
    is_small, stops_when_full = chance.random() < 0.25, chance.random() < 0.3
    pair = Pair(
        seed,
        is_call=chance.random() < 0.2,
        delay_s=(0.0, chance.choice([0.0, 0.1, 0.4, 1.5])),
        in_flight=chance.choice([1, 2, 8]),
        **({**SMALL_CONTEXT, "stops_when_full": stops_when_full} if is_small else {}),
    )
    client = RandomClient(chance, pair, has_long_items=is_small)
    for _ in range(chance.randrange(5, 40)):
        client.act()
    if chance.random() < 0.1:
        expect_end_by_failure(pair)
        return
    expect_quiet_end(pair)
    expect_answers_as_emitted(pair)
    if not is_small:
        expect_same_history(pair)
    if not (is_small and stops_when_full):
        expect_next_turn_is_answered(pair)
    for item_id in list(pair.ledger.items):
        pair.send("conversation.item.delete", item_id=item_id)
    pair.settle()
    assert not pair.ledger.items
    assert set(pair.engine.parts()) <= set(INSTRUCTIONS)


def expect_quiet_end(pair: Pair) -> None:
    """Assert that everything ends with detection on and three seconds of silence; only keep-alive ticks follow."""
    pair.update(turn_detection=VAD, output_modalities=["audio"], max_output_tokens="inf")
    pair.append(silence, 3000)
    pair.settle()
    assert not pair.ledger.user_speaks
    assert pair.engine.clears == pair.clears
    if pair.engine.conversation:
        expected = pair.bridge.session.turn_options()
        assert {name: getattr(pair.engine.conversation.options.turn, name) for name in expected} == expected


def expect_answers_as_emitted(pair: Pair) -> None:
    """Assert that text and sound of a response are those of its answer, complete unless it was cut off.

    If the user's turn ends before a response's modality has reached the engine, its answer has the session's.
    """
    for is_out_of_band in (False, True):
        answers = [answer for answer in pair.engine.answers if answer.is_out_of_band == is_out_of_band]
        responses = [
            response
            for response in pair.ledger.responses.values()
            if response.item_id and response.is_out_of_band == is_out_of_band
        ]
        for response, answer in zip(responses, answers, strict=True):
            assert response.done
            has_all = response.done["status"] in ("completed", "incomplete")
            assert response.text == answer.text if has_all else answer.text.startswith(response.text)
            if response.is_requested and (response.modality == "audio") != bool(answer.sound):
                continue
            if pair.player:
                assert answer.sound.startswith(pair.player.sounds.get(response.created["id"], b""))
            else:
                assert response.audio == answer.sound if has_all else answer.sound.startswith(response.audio)


def expect_same_history(pair: Pair) -> None:
    """Assert that the client's items are what the engine's history holds."""
    found: Counter[tuple[str, str]] = Counter()
    for item_id in pair.ledger.items:
        pair.send("conversation.item.retrieve", item_id=item_id)
        item = pair.received[-1]["item"]
        parts = [part.get("text") or part.get("transcript") or "" for part in item["content"]]
        found[item["role"], "".join(parts)] += 1
    held = pair.engine.parts()
    for instructions in INSTRUCTIONS:
        held.pop(instructions, None)
    assert found == held


def expect_next_turn_is_answered(pair: Pair) -> None:
    before = len(pair.received)
    pair.append(speech, 900)
    pair.append(silence, 3000)
    pair.settle()
    kinds = [event["type"] for event in pair.received[before:] if event["type"].startswith(("input_", "response."))]
    assert kinds[:4] == [
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
        "response.created",
    ]
    assert kinds[-1] == "response.done"


def expect_end_by_failure(pair: Pair) -> None:
    """Assert that open responses fail if the engine fails."""
    responses = pair.ledger.open
    pair.bridge.fail(TickError("the engine is gone"))
    assert not pair.ledger.open
    assert all(response.done and response.done["status"] == "failed" for response in responses)
    assert pair.received[-1]["error"]["message"] == "the engine is gone"


@pytest.mark.parametrize("first", range(0, 300, 50))
def test_random_conversation_keeps_every_promise(first: int):
    for seed in range(first, first + 50):
        converse(seed)


@pytest.mark.long
def test_thousands_of_random_conversations_keep_every_promise():
    for seed in range(300, 2300):
        converse(seed)


def speech_in_flight() -> Pair:
    """Return a client that has sent speech, of which the bridge has no response yet."""
    pair = Pair(delay_s=(1.0, 1.0))
    pair.append(speech, 900)
    pair.pass_time(0.0)
    assert pair.ticks == 2
    return pair


@pytest.mark.parametrize("conversation", ["auto", "none"])
def test_response_after_clear_ends_if_detection_was_turned_off_during_speech(conversation: str):
    pair = speech_in_flight()
    pair.update(turn_detection=None)
    pair.send("input_audio_buffer.clear")
    pair.pass_time(3.0)
    pair.respond(conversation=conversation)
    pair.settle()
    assert [response.done["status"] for response in pair.ledger.responses.values()] == ["completed"]


def test_clear_before_speech_started_has_arrived_drops_the_speech():
    pair = speech_in_flight()
    pair.send("input_audio_buffer.clear")
    pair.pass_time(3.0)
    pair.append(silence, 3000)
    pair.settle()
    assert "input_audio_buffer.committed" not in [event["type"] for event in pair.received]
    expect_next_turn_is_answered(pair)


def tick(engine: ScriptedEngine, count: int = 1, pcm: bytes = SILENCE, **parameters: object) -> list[dict]:
    """Return the events of ticks, of which the first carries the parameters."""
    events: list[dict] = []
    for number in range(count):
        requested = parameters if number == 0 else {}
        events += engine.tick(TickIn.from_parameters(pcm, requested, 320, start=engine.conversation is None)).events
    return events


def test_pending_respond_ends_with_its_turn():
    engine = ScriptedEngine(random.Random(0), CONFIG)
    tick(engine, listen=True)
    tick(engine, respond=True)
    tick(engine, message="instead")
    tick(engine, 30)
    assert engine.events["answer_started"] == 1
