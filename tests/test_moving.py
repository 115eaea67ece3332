"""Two servers, one is killed: its conversations go on with the other, whose answers equal those of `generate()`."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from engine.checkpoint import Checkpoint
from tests.pair import ANSWER_FRAMES, ANSWER_TOKENS, MOVE_WITHIN_S, Pair, expect_sound
from tests.probes import is_ready
from tests.turn_oracle import TurnOracle
from tests.turns import TICK, lengthened


def of(events: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    (found,) = [event for event in events if event["type"] == kind]
    return found


def test_conversation_goes_on_with_the_other_server(pair: Pair, checkpoint: Checkpoint, questions):
    """Spoken to a sample within ticks (by VAD), typed, and answered; then its server is killed, and once more."""
    client = pair.guest(pair.moving_bridge.websocket, "voice=ethan&seed=3")
    oracle = TurnOracle(checkpoint, "ethan")
    said = np.concatenate([np.zeros(1234, np.int16), questions[0]])
    said = said[: len(said) // TICK * TICK]
    heard: list[np.ndarray] = []  # every sample that was said

    def say(sound: np.ndarray) -> None:
        heard.append(sound)
        client.say(sound)

    def check(events: list[dict[str, Any]], sound: np.ndarray, typed: str = "") -> None:
        started = of(events, "answer_started")
        clip = None
        if "audio_start_ms" in started:
            everything = np.concatenate(heard)
            clip = lengthened(everything[16 * started["audio_start_ms"] : 16 * started["audio_end_ms"]])
        oracle.add_user_turn(clip, typed)
        expected = oracle.answer(ANSWER_TOKENS, ANSWER_FRAMES)
        text = checkpoint.tokenizer.decode(expected.tokens, skip_special_tokens=True)
        assert of(events, "answer_done")["text"] == text
        expect_sound(sound, expected.waveform.numpy())
        oracle.add_answer([token for token in expected.tokens if token != checkpoint.tokenizer.eos_token_id])

    def is_read_again() -> None:
        """A server that reads the history has the answers' text, not the tokens that they were emitted in."""
        for message in oracle.messages:
            if message["role"] == "assistant":
                text = checkpoint.tokenizer.decode(message["content"], skip_special_tokens=True)
                message["content"] = checkpoint.tokenizer(text).input_ids

    def wait_quietly() -> None:
        """Silence until the answer has ended, which is heard too."""
        for _ in range(200):
            if client.events and client.events[-1]["type"] == "answer_done":
                break
            say(np.zeros(TICK, np.int16))
        say(np.zeros(TICK, np.int16))

    known, sounds = 0, 0

    def since() -> tuple[list[dict[str, Any]], np.ndarray]:
        nonlocal known, sounds
        found = client.events[known:], np.concatenate(client.sounds[sounds:])
        known, sounds = len(client.events), len(client.sounds)
        return found

    say(said)
    wait_quietly()
    check(*since())
    client.ask("message", text="And then?")
    client.hear()
    heard.append(np.zeros(TICK, np.int16))
    wait_quietly()
    check(*since(), typed="And then?")

    killed = pair.kill_the_only_one_taken()
    say(questions[1][: 9 * TICK])
    wait_quietly()
    events, sound = since()
    moved = of(events, "moved")
    assert not [event for event in events if event["type"] in ("error", "interrupted")]
    assert 0 < moved["took_ms"] < 1000 * MOVE_WITHIN_S
    clock_ms = 20 * len(np.concatenate(heard)) // 320
    assert all(0 < event["at_ms"] <= clock_ms for event in events), "on the client's clock"
    started = of(events, "answer_started")
    assert started["turn"] > 2, "numbers go on"
    assert started["turn"] == of(events, "committed")["turn"]
    is_read_again()
    check(events, sound)

    while not is_ready(killed):
        say(np.zeros(TICK, np.int16))  # the conversation does not idle
        time.sleep(0.5)
    pair.kill_the_only_one_taken()
    since()
    client.ask("message", text="말해 줘.")
    client.hear()
    heard.append(np.zeros(TICK, np.int16))
    wait_quietly()
    events, sound = since()
    assert of(events, "moved")["took_ms"] > 0
    is_read_again()
    check(events, sound, typed="말해 줘.")
    client.ask("transcript")
    turns = client.wait_for("transcript")["turns"]
    assert [turn["role"] for turn in turns] == ["user", "assistant"] * 4
    first = next(event for event in client.events if event["type"] == "committed")
    assert turns[0]["audio_end_ms"] == first["audio_end_ms"], "as it was told"


def test_interrupted_answer_is_repeated_by_the_other_server(pair: Pair, checkpoint: Checkpoint, questions):
    client = pair.guest(pair.moving_bridge.websocket, "voice=ethan&detection=manual")
    said = questions[0][: 6 * TICK]
    client.say(said[: 5 * TICK])
    client.socket.send(said[5 * TICK :].tobytes())
    client.ask("commit")
    client.hear()
    client.hear()  # the tick that follows the commit
    while not any(event["type"] == "answer_started" for event in client.events):
        client.say(np.zeros(TICK, np.int16))
    assert not any(event["type"] == "answer_done" for event in client.events)
    pair.kill_the_only_one_taken()
    known, heard = len(client.events), len(client.sounds)
    while not any(event["type"] == "answer_done" for event in client.events):
        client.say(np.zeros(TICK, np.int16))
    client.say(np.zeros(TICK, np.int16))
    events = client.events[known:]
    cut = of(events, "interrupted")
    assert (cut["by"], cut["heard_text"]) == ("move", "")
    assert cut["heard_ms"] >= 320
    kinds = [event["type"] for event in events]
    assert kinds.index("interrupted") < kinds.index("moved") < kinds.index("answer_started")
    assert of(events, "answer_started")["turn"] > cut["turn"]
    started = next(event for event in client.events if event["type"] == "answer_started")
    oracle = TurnOracle(checkpoint, "ethan")
    assert started["audio_start_ms"] == 0
    spoken = np.pad(said, (0, TICK))[: 16 * started["audio_end_ms"]]  # a commit closes its tick with silence
    oracle.add_user_turn(lengthened(spoken))
    expected = oracle.answer(ANSWER_TOKENS, ANSWER_FRAMES)
    assert of(events, "answer_done")["text"] == checkpoint.tokenizer.decode(expected.tokens, skip_special_tokens=True)
    expect_sound(np.concatenate(client.sounds[heard:]), expected.waveform.numpy())


def test_open_turn_goes_on_with_the_other_server(pair: Pair, checkpoint: Checkpoint, questions):
    """Manual detection, without `listen`, after an answer: on both servers the turn begins at the end of the answer."""
    client = pair.guest(pair.moving_bridge.websocket, "voice=ethan&detection=manual")
    client.ask("message", text="Hello.")
    client.hear()
    if not any(event["type"] == "answer_done" for event in client.events):
        client.wait_for("answer_done", ticks=200)
    greeting = of(client.events, "answer_done")["text"]
    ended, said = len(client.sounds), questions[0][: 10 * TICK]
    client.say(said[: 6 * TICK])
    pair.kill_the_only_one_taken()
    known = len(client.events)
    client.say(said[6 * TICK : 9 * TICK])
    client.socket.send(said[9 * TICK : -1000].tobytes())
    client.ask("commit")
    client.hear()
    while not any(event["type"] == "answer_done" for event in client.events[known:]):
        client.say(np.zeros(TICK, np.int16))
    client.say(np.zeros(TICK, np.int16))
    events = client.events[known:]
    assert of(events, "moved")["took_ms"] > 0
    started = of(events, "answer_started")
    assert (started["audio_start_ms"], started["audio_end_ms"]) == (ended * 320, (ended + 10) * 320)
    oracle = TurnOracle(checkpoint, "ethan")
    oracle.add_user_turn(None, "Hello.")
    oracle.add_answer(checkpoint.tokenizer(greeting).input_ids)
    oracle.add_user_turn(np.concatenate([said[:-1000], np.zeros(1000, np.int16)]))
    expected = oracle.answer(ANSWER_TOKENS, ANSWER_FRAMES)
    assert of(events, "answer_done")["text"] == checkpoint.tokenizer.decode(expected.tokens, skip_special_tokens=True)
