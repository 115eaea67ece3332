"""Controls in mid-conversation."""

from __future__ import annotations

import numpy as np

from contract.controls import Controls, Part
from contract.errors import ErrorCode
from engine.engine import Engine
from tests.turn_oracle import TurnOracle
from tests.turns import (
    MANUAL,
    NO_CONTROLS,
    TICK,
    Call,
    Script,
    User,
    asking,
    converse,
    event_of,
    interrupted,
    kinds,
    play,
    silence,
    spoken_frames,
    ticks,
)


def test_listen_begins_a_turn_and_ends_an_answer(talkative: Engine, frontend, questions):
    def script() -> Script:
        user = User()
        yield from user.wait(3)
        yield from user.speak(questions[0][: 5 * TICK], Controls(listen=True), Controls(commit=True))
        yield from user.wait(4)
        yield from user.speak(questions[0][: 4 * TICK], Controls(listen=True), Controls(commit=True))
        yield from user.wait(2)

    call = converse(talkative, frontend, script(), **MANUAL)
    assert kinds(call) == ["answer_started", "interrupted", "answer_started"]
    assert event_of(call, "interrupted").by == "listen"
    spans = [received.audio_ms for received in call.answers]
    assert spans == [(3 * 320, 8 * 320), (12 * 320, 16 * 320)], "silence before is not part of a turn"


def test_cancel_ends_an_answer(talkative: Engine, frontend, questions):
    def script() -> Script:
        yield from asking(questions[0][: 5 * TICK], then=3)
        yield silence(), Controls(cancel=True)
        yield silence(), Controls(cancel=True)

    call = converse(talkative, frontend, script(), **MANUAL)
    assert kinds(call) == ["answer_started", "interrupted", "error"]
    assert event_of(call, "interrupted").by == "cancel"
    assert event_of(call, "error").code == "nothing_to_cancel"
    assert spoken_frames(call)[-2:] == [0, 0]


def test_commit_without_audio_is_an_error(engine: Engine, frontend):
    def script() -> Script:
        yield silence(), NO_CONTROLS
        yield silence(), Controls(commit=True)
        yield silence(), NO_CONTROLS

    call = converse(engine, frontend, script())
    assert kinds(call) == ["error"]
    error = call.events[0]
    assert (error.at_ms, error.code) == (640, ErrorCode.NOTHING_TO_COMMIT)


def test_typed_message_is_answered_at_once_and_joins_speech(engine: Engine, frontend, checkpoint, questions):
    def script() -> Script:
        user = User()
        spoken = yield silence(), Controls(message="Hello.")
        user.note(spoken)
        yield from user.until_quiet()
        parts = list(ticks(questions[0]))
        for i, part in enumerate(parts):
            user.note((yield part, Controls(message="And this." if i == 5 else "")))
        yield from user.until_quiet()

    call = Call(engine, 1, frontend, script())
    play(call)
    typed, spoken = (entry for entry in engine.conversation(1).history.entries if entry.part is Part.USER)
    engine.close(1)
    assert (typed.text, spoken.typed) == ("Hello.", "And this.")
    assert [event.type for event in call.events[:2]] == ["committed", "answer_started"]
    oracle = TurnOracle(checkpoint, "ethan")
    oracle.add_user_turn(None, "Hello.")
    assert call.answers[0].tokens == oracle.answer(40, 80).tokens
    oracle.add_answer(call.answers[0].kept)
    oracle.add_user_turn(call.sound(call.answers[1]), "And this.")
    assert call.answers[1].tokens == oracle.answer(40, 80).tokens


def test_long_message_is_prefilled_in_pieces(engine: Engine, frontend, checkpoint):
    words = "the quick brown fox jumps over the lazy dog " * 8

    def script() -> Script:
        user = User()
        user.note((yield silence(), Controls(message=words)))
        yield from user.until_quiet()

    call = converse(engine, frontend, script())
    oracle = TurnOracle(checkpoint, "ethan")
    oracle.add_user_turn(None, words)
    assert call.answers[0].tokens == oracle.answer(40, 80).tokens


def test_transcript_lists_the_history(talkative: Engine, frontend, questions, interruption):
    def script() -> Script:
        yield from interrupted(questions, interruption)
        yield silence(), Controls(transcript=True)

    call = converse(talkative, frontend, script())
    turns = event_of(call, "transcript").turns
    assert [turn["role"] for turn in turns] == ["user", "assistant", "user", "assistant"]
    assert turns[0]["audio_end_ms"] > turns[0]["audio_start_ms"]
    assert turns[1]["interrupted"] is True
    assert turns[1]["text"] == event_of(call, "interrupted").heard_text


def test_reset_clears_the_conversation(engine: Engine, frontend, questions):
    call = play(Call(engine, 1, frontend, asking(questions[0][: 9 * TICK], then=2), system_prompt="Be kind.", **MANUAL))
    prompt = len(engine.conversation(1).prompt)
    assert engine.thinker_length(1) > prompt
    assert call.answers
    engine.reset(1)
    assert engine.thinker_length(1) == prompt
    conversation, cache = engine.conversation(1), engine.slots.thinker_cache.buffer
    assert (conversation.answers.current, conversation.clock_ms, conversation.history.turns) == (None, 0, [])
    assert not cache[:, conversation.slot, :, prompt:].any()
    engine.close(1)
    assert not cache[:, :4].any(), "no conversation leaves a value"
    assert not engine.slots.talker_cache.buffer[:, :4].any()


def test_message_during_an_answer_begins_another_answer_in_its_tick(talkative: Engine, frontend, questions):
    """The first frame of the new answer is marked, since no silence lies between the two."""

    def script() -> Script:
        yield from asking(questions[0][: 6 * TICK], then=4)
        yield silence(), Controls(message="What is the weather like?")
        yield silence(), NO_CONTROLS

    call = converse(talkative, frontend, script(), voice="aiden", **MANUAL)
    assert kinds(call) == ["answer_started", "interrupted", "answer_started"]
    assert spoken_frames(call)[-3:] == [4, 4, 4]
    assert [spoken.begins for spoken in call.spoken[5:]] == [True, False, False, False, False, True, False]


def test_message_that_is_too_long_keeps_the_history(small: Engine, frontend):
    def script() -> Script:
        user = User()
        user.note((yield silence(), Controls(message="Hello.")))
        yield from user.until_quiet()
        yield silence(), Controls(message="x" * 400)
        yield silence(), Controls(transcript=True)

    call = converse(small, frontend, script())
    assert event_of(call, "error").code == "turn_too_long"
    assert event_of(call, "transcript").turns[0]["text"] == "Hello."


def test_silence_in_the_default_turn_evicts_no_history(small: Engine, frontend):
    """With manual detection, a client waits for longer than the duration of the context."""

    def script() -> Script:
        user = User()
        user.note((yield silence(), Controls(message="Hello.")))
        yield from user.until_quiet()
        yield from user.wait(60)
        yield silence(), Controls(transcript=True)

    call = converse(small, frontend, script(), **MANUAL)
    assert "turns_dropped" not in kinds(call)
    assert event_of(call, "transcript").turns[0]["text"] == "Hello."


def test_word_within_an_answer_opens_no_turn_after_it(engine: Engine, frontend, questions, interruption):
    """The word ended before the answer; only the silence that shows its end lies after the answer."""
    start = int(np.argmax(np.abs(interruption) > 1000))

    def script(at: int) -> Script:
        user = User()
        yield from user.speak(questions[0][: 10 * TICK], last=Controls(commit=True))
        yield from user.wait(at)
        yield from user.speak(interruption[start : start + 4000])
        yield from user.until_quiet()

    frames = 4 * (len(spoken_frames(converse(engine, frontend, script(0), interrupt="false"))) - 10)
    for at in range(0, frames // 4 - 2):
        call = converse(engine, frontend, script(at), interrupt="false")
        done = event_of(call, "answer_done").at_ms
        for event in call.events:
            if event.type == "answer_started" and event.at_ms > done:
                assert event.audio_end_ms - 500 > done - 300 - 320, "speech after the answer"


def test_commit_under_voice_detection_ends_the_speech(talkative: Engine, frontend, questions):
    """The events of speech come in pairs, and speech that goes on does not interrupt its own answer at once."""

    def script() -> Script:
        user = User()
        yield from user.speak(questions[0][: 8 * TICK], last=Controls(commit=True))
        yield from user.speak(questions[0][8 * TICK : 9 * TICK])
        yield from user.wait(2)

    call = converse(talkative, frontend, script())
    assert kinds(call)[:3] == ["speech_started", "speech_stopped", "answer_started"]


def test_speech_in_progress_when_detection_is_switched_off_is_kept_for_the_commit(engine: Engine, frontend, questions):
    def script() -> Script:
        user = User()
        yield from user.speak(questions[0][: 8 * TICK])
        user.note((yield questions[0][8 * TICK : 9 * TICK], Controls(turn={"detection": "manual"})))
        yield from user.speak(questions[0][9 * TICK : 11 * TICK], last=Controls(commit=True))
        yield from user.until_quiet()

    call = converse(engine, frontend, script())
    started, committed = event_of(call, "speech_started"), event_of(call, "committed")
    assert committed.audio_start_ms == max(0, started.at_ms - 300) // 10 * 10
    assert committed.audio_end_ms == 11 * 320
    assert event_of(call, "answer_done")


def test_listen_under_voice_detection_drops_the_speech_before(talkative: Engine, frontend, questions):
    """The end of that speech does not end the turn that begins here, and a message does not wait for it."""

    def script() -> Script:
        user = User()
        yield from user.speak(questions[0][: 8 * TICK])
        yield silence(), Controls(listen=True)
        yield from user.wait(4)
        yield silence(), Controls(message="Hello.")

    call = converse(talkative, frontend, script())
    assert kinds(call) == ["speech_started", "input_dropped", "speech_stopped", "input_dropped", "answer_started"]
    assert [event.turn for event in call.events if event.type == "input_dropped"] == [1, 2]
    assert call.answers[0].audio_ms is None
