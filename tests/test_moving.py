"""Two servers, one is killed: its conversations continue on the other, and the answers equal those of `generate()`."""

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


def test_conversation_continues_on_the_other_server(pair: Pair, checkpoint: Checkpoint, questions):
    """A spoken turn (by VAD) and a typed turn; the server is killed before the third turn, and before the fourth."""
    client = pair.open_client(pair.moving_bridge.websocket, "voice=ethan&seed=3")
    oracle = TurnOracle(checkpoint, "ethan")
    question = np.concatenate([np.zeros(1234, np.int16), questions[0]])
    question = question[: len(question) // TICK * TICK]
    sent: list[np.ndarray] = []  # audio that the client has sent

    def send(sound: np.ndarray) -> None:
        sent.append(sound)
        client.send_audio(sound)

    def check(events: list[dict[str, Any]], sound: np.ndarray, typed: str = "") -> None:
        started = of(events, "answer_started")
        clip = None
        if "audio_start_ms" in started:
            everything = np.concatenate(sent)
            clip = lengthened(everything[16 * started["audio_start_ms"] : 16 * started["audio_end_ms"]])
        oracle.add_user_turn(clip, typed)
        expected = oracle.answer(ANSWER_TOKENS, ANSWER_FRAMES)
        text = checkpoint.tokenizer.decode(expected.tokens, skip_special_tokens=True)
        assert of(events, "answer_done")["text"] == text
        expect_sound(sound, expected.waveform.numpy())
        oracle.add_answer([token for token in expected.tokens if token != checkpoint.tokenizer.eos_token_id])

    def retokenize_answers() -> None:
        """Replace the tokens of the answers by those of their text, which is what a server reads from the history."""
        for message in oracle.messages:
            if message["role"] == "assistant":
                text = checkpoint.tokenizer.decode(message["content"], skip_special_tokens=True)
                message["content"] = checkpoint.tokenizer(text).input_ids

    def send_silence() -> None:
        """Send silence until the answer has ended, and one more tick."""
        for _ in range(200):
            if client.events and client.events[-1]["type"] == "answer_done":
                break
            send(np.zeros(TICK, np.int16))
        send(np.zeros(TICK, np.int16))

    known, sounds = 0, 0

    def since() -> tuple[list[dict[str, Any]], np.ndarray]:
        nonlocal known, sounds
        found = client.events[known:], np.concatenate(client.sounds[sounds:])
        known, sounds = len(client.events), len(client.sounds)
        return found

    send(question)
    send_silence()
    check(*since())
    client.send_event("message", text="And then?")
    client.receive_tick()
    sent.append(np.zeros(TICK, np.int16))
    send_silence()
    check(*since(), typed="And then?")

    killed = pair.kill_the_only_one_taken()
    send(questions[1][: 9 * TICK])
    send_silence()
    events, sound = since()
    moved = of(events, "moved")
    assert not [event for event in events if event["type"] in ("error", "interrupted")]
    assert 0 < moved["took_ms"] < 1000 * MOVE_WITHIN_S
    clock_ms = 20 * len(np.concatenate(sent)) // 320
    assert all(0 < event["at_ms"] <= clock_ms for event in events), "on the client's clock"
    started = of(events, "answer_started")
    assert started["turn"] > 2, "turn numbers continue"
    assert started["turn"] == of(events, "committed")["turn"]
    retokenize_answers()
    check(events, sound)

    while not is_ready(killed):
        send(np.zeros(TICK, np.int16))  # the conversation does not idle
        time.sleep(0.5)
    pair.kill_the_only_one_taken()
    since()
    client.send_event("message", text="말해 줘.")
    client.receive_tick()
    sent.append(np.zeros(TICK, np.int16))
    send_silence()
    events, sound = since()
    assert of(events, "moved")["took_ms"] > 0
    retokenize_answers()
    check(events, sound, typed="말해 줘.")
    client.send_event("transcript")
    turns = client.wait_for("transcript")["turns"]
    assert [turn["role"] for turn in turns] == ["user", "assistant"] * 4
    first = next(event for event in client.events if event["type"] == "committed")
    assert turns[0]["audio_end_ms"] == first["audio_end_ms"], "as the first event reported"


def test_interrupted_answer_is_repeated_by_the_other_server(pair: Pair, checkpoint: Checkpoint, questions):
    client = pair.open_client(pair.moving_bridge.websocket, "voice=ethan&detection=manual")
    question = questions[0][: 6 * TICK]
    client.send_audio(question[: 5 * TICK])
    client.socket.send(question[5 * TICK :].tobytes())
    client.send_event("commit")
    client.receive_tick()
    client.receive_tick()  # the tick that follows the commit
    while not any(event["type"] == "answer_started" for event in client.events):
        client.send_audio(np.zeros(TICK, np.int16))
    assert not any(event["type"] == "answer_done" for event in client.events)
    pair.kill_the_only_one_taken()
    known, first_tick = len(client.events), len(client.sounds)
    while not any(event["type"] == "answer_done" for event in client.events):
        client.send_audio(np.zeros(TICK, np.int16))
    client.send_audio(np.zeros(TICK, np.int16))
    events = client.events[known:]
    interrupted = of(events, "interrupted")
    assert (interrupted["by"], interrupted["heard_text"]) == ("move", "")
    assert interrupted["heard_ms"] >= 320
    kinds = [event["type"] for event in events]
    assert kinds.index("interrupted") < kinds.index("moved") < kinds.index("answer_started")
    assert of(events, "answer_started")["turn"] > interrupted["turn"]
    started = next(event for event in client.events if event["type"] == "answer_started")
    oracle = TurnOracle(checkpoint, "ethan")
    assert started["audio_start_ms"] == 0
    spoken = np.pad(question, (0, TICK))[: 16 * started["audio_end_ms"]]  # a commit closes its tick with silence
    oracle.add_user_turn(lengthened(spoken))
    expected = oracle.answer(ANSWER_TOKENS, ANSWER_FRAMES)
    assert of(events, "answer_done")["text"] == checkpoint.tokenizer.decode(expected.tokens, skip_special_tokens=True)
    expect_sound(np.concatenate(client.sounds[first_tick:]), expected.waveform.numpy())


def test_open_turn_continues_on_the_other_server(pair: Pair, checkpoint: Checkpoint, questions):
    """Manual detection, without `listen`, after an answer: on both servers the turn begins at the end of the answer."""
    client = pair.open_client(pair.moving_bridge.websocket, "voice=ethan&detection=manual")
    client.send_event("message", text="Hello.")
    client.receive_tick()
    if not any(event["type"] == "answer_done" for event in client.events):
        client.wait_for("answer_done", ticks=200)
    greeting = of(client.events, "answer_done")["text"]
    ended, question = len(client.sounds), questions[0][: 10 * TICK]
    client.send_audio(question[: 6 * TICK])
    pair.kill_the_only_one_taken()
    known = len(client.events)
    client.send_audio(question[6 * TICK : 9 * TICK])
    client.socket.send(question[9 * TICK : -1000].tobytes())
    client.send_event("commit")
    client.receive_tick()
    while not any(event["type"] == "answer_done" for event in client.events[known:]):
        client.send_audio(np.zeros(TICK, np.int16))
    client.send_audio(np.zeros(TICK, np.int16))
    events = client.events[known:]
    assert of(events, "moved")["took_ms"] > 0
    started = of(events, "answer_started")
    assert (started["audio_start_ms"], started["audio_end_ms"]) == (ended * 320, (ended + 10) * 320)
    oracle = TurnOracle(checkpoint, "ethan")
    oracle.add_user_turn(None, "Hello.")
    oracle.add_answer(checkpoint.tokenizer(greeting).input_ids)
    oracle.add_user_turn(np.concatenate([question[:-1000], np.zeros(1000, np.int16)]))
    expected = oracle.answer(ANSWER_TOKENS, ANSWER_FRAMES)
    assert of(events, "answer_done")["text"] == checkpoint.tokenizer.decode(expected.tokens, skip_special_tokens=True)
