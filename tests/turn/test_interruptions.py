"""Speech interrupts an answer."""

from __future__ import annotations

import numpy as np

from contract.controls import Controls
from engine.engine import Engine
from tests.turns import (
    TICK,
    Call,
    Script,
    User,
    converse,
    event_of,
    interrupted,
    kinds,
    spoken_frames,
    ticks,
)


def test_speech_interrupts_an_answer_in_its_tick(talkative: Engine, frontend, questions, interruption):
    call = converse(talkative, frontend, interrupted(questions, interruption))
    interrupted_at = event_of(call, "interrupted")
    speech = [event for event in call.events if event.type == "speech_started"][-1]
    assert interrupted_at.by == "speech"
    assert 0 < interrupted_at.at_ms - speech.at_ms <= 320, "at the end of the tick in which speech begins"
    tick = interrupted_at.at_ms // 320 - 1
    frames = spoken_frames(call)
    assert frames[tick - 1] == 4
    assert frames[tick] == 0, "no frame of the interrupted answer"
    assert interrupted_at.heard_ms == 80 * sum(frames[:tick])
    again = [event for event in call.events if event.type == "answer_started"][-1]
    assert again.at_ms > interrupted_at.at_ms, "the interrupting speech is answered"
    heard = len(call.answers[0].kept)
    assert heard <= -(-interrupted_at.heard_ms * 35 // 10_000), "3.5 tokens a second"
    assert call.answers[0].kept == call.answers[0].tokens[:heard]


def test_interrupted_answer_costs_no_computation(talkative: Engine, frontend, questions, interruption):
    call = Call(talkative, 1, frontend, interrupted(questions, interruption))
    while not any(event.type == "interrupted" for event in call.events):
        before = dict(talkative.stage_seconds)
        call.receive(talkative.tick({1: call.next_input()})[1])
    after = talkative.stage_seconds
    assert after["vad"] > before["vad"]
    for stage in ("text", "talker", "code predictor", "prefill"):
        assert after[stage] == before[stage], stage
    talkative.close(1)


def test_speech_interrupts_no_answer_if_interrupt_is_off(talkative: Engine, frontend, questions, interruption):
    call = converse(talkative, frontend, interrupted(questions, interruption), interrupt="false")
    assert "interrupted" not in kinds(call)
    assert all(count == 4 for count in spoken_frames(call)[len(list(ticks(questions[0]))) :])
    assert kinds(call).count("answer_started") == 1


def test_speech_interrupts_only_after_interrupt_after_ms(talkative: Engine, frontend, questions, interruption):
    """With 1000 ms required, 400 ms of speech do not interrupt; longer speech does, a second after its start."""
    start = int(np.argmax(np.abs(interruption) > 1000))
    for sound, expected in ((interruption[start : start + 6400], False), (interruption, True)):
        call = converse(talkative, frontend, interrupted(questions, sound), interrupt_after_ms=1000)
        speech = [event for event in call.events if event.type == "speech_started"]
        assert len(speech) >= 1 + expected
        assert ("interrupted" in kinds(call)) == expected
        if expected:
            waited = event_of(call, "interrupted").at_ms - speech[-1].at_ms
            assert 1000 <= waited < 2000, "a pause at the end does not count"
            again = [event for event in call.events if event.type == "answer_started"][-1]
            assert again.audio_start_ms <= speech[-1].at_ms, "the turn includes the start of the speech"
        else:
            assert kinds(call).count("answer_started") == 1, "a word is not a turn"


def test_speech_that_goes_on_after_an_answer_is_a_turn_from_there(engine: Engine, frontend, questions, interruption):
    """With `interrupt` off, speech that goes on when the answer ends is a turn from that time on."""

    def script() -> Script:
        user = User()
        yield from user.speak(questions[0][: 10 * TICK], last=Controls(commit=True))
        yield from user.speak(np.concatenate([questions[0], questions[0]]))
        yield from user.until_quiet()

    call = converse(engine, frontend, script(), interrupt="false")
    first = event_of(call, "answer_done")
    second = [event for event in call.events if event.type == "answer_started"][1]
    assert second.audio_start_ms >= first.at_ms - 300 - 320
