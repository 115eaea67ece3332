"""Edits of the history: items, requested answers, truncation and forgetting."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from contract.controls import Controls, ForgetControl, ItemControl, Part, Role, TruncateControl
from engine.checkpoint import Checkpoint
from engine.engine import Engine
from tests.turn_machine import answer_of, expect_lengths
from tests.turn_oracle import TurnOracle
from tests.turns import MANUAL, Call, Script, User, asking, converse, event_of, kinds, play, silence

NEXT = "What is the weather like?"


def answered(call: Call) -> list[int]:
    return call.answers[-1].tokens


def alone(checkpoint: Checkpoint, text: str) -> list[int]:
    """Return the oracle's answer to a message that is the whole history."""
    oracle = TurnOracle(checkpoint, "ethan")
    oracle.add_user_turn(None, text)
    return oracle.answer(40, 80).tokens


def with_controls(then: Controls | None = None, **controls) -> Script:
    """Yield one tick with controls, one with `then` if given, and silence until the answer has ended."""
    user = User()
    user.note((yield silence(), Controls(**controls)))
    if then:
        user.note((yield silence(), then))
    yield from user.until_quiet()


def test_items_are_history_for_the_requested_answer(engine, frontend, checkpoint: Checkpoint):
    """Items of all three roles; the oracle writes them with the checkpoint's own template."""
    items = (
        ItemControl(Role.USER, "Hello there."),
        ItemControl(Role.ASSISTANT, "Hello. How can I help?"),
        ItemControl(Role.SYSTEM, "From now on, be brief. " * 30),
        ItemControl(Role.USER, "What is the weather like?"),
    )
    call = converse(engine, frontend, with_controls(items=items, respond=True), voice="ethan", system_prompt="Be kind.")
    oracle = TurnOracle(checkpoint, "ethan", "Be kind.")
    for item in items:
        if item.role == "user":
            oracle.add_user_turn(None, item.text)
        elif item.role == "assistant":
            oracle.add_answer(checkpoint.tokenizer.encode(item.text, add_special_tokens=False))
        else:
            oracle.messages.append({"role": "system", "content": item.text})
    expected = oracle.answer(40, 80)
    assert answered(call) == expected.tokens
    assert torch.equal(torch.cat(call.answers[-1].codes, 1)[:, : expected.codes.shape[1]], expected.codes)
    assert [event.turn for event in call.events if event.type == "committed"] == [1, 2, 3, 4]


def test_items_get_no_answer(engine: Engine, frontend):
    call = converse(engine, frontend, with_controls(items=(ItemControl(Role.USER, "Hello."),)))
    assert kinds(call) == []


def test_respond_before_any_turn_gives_an_answer(engine: Engine, frontend):
    """The history is only the prompt, as for an agent that greets; transformers' talker requires a user's part."""
    call = converse(engine, frontend, with_controls(respond=True), system_prompt="Greet the user.")
    assert kinds(call) == ["answer_started", "answer_done"]
    assert call.answers[0].tokens


def test_turn_without_automatic_answer_is_answered_by_respond(engine, frontend, checkpoint, questions):
    def script() -> Script:
        yield from asking(questions[0], then=3)
        yield from with_controls(items=(ItemControl(Role.USER, "In one word."),), respond=True)

    call = Call(engine, 1, frontend, script(), **MANUAL, create_response=False)
    play(call)
    engine.close(1)
    assert kinds(call) == ["answer_started", "answer_done"]
    spoken = next(event for event in call.events if event.type == "committed")
    call.answers[0].audio_ms = (spoken.audio_start_ms, spoken.audio_end_ms)
    oracle = TurnOracle(checkpoint, "ethan")
    oracle.add_user_turn(call.sound(call.answers[0]))
    oracle.add_user_turn(None, "In one word.")
    assert answered(call) == oracle.answer(40, 80).tokens


def test_truncated_answer_is_history_up_to_what_was_heard(engine, frontend, checkpoint):
    """The client reports later how much was heard of an answer that was emitted completely."""

    def script() -> Script:
        yield from with_controls(message="Hello.")
        yield from with_controls(truncate=TruncateControl(1, 4000))
        yield from with_controls(message=NEXT)

    call = Call(engine, 1, frontend, script())
    play(call)
    kept = list(answer_of(engine.conversation(1).history, 1).tokens)
    engine.close(1)
    whole = call.answers[0].tokens[:-1] if call.answers[0].tokens[-1] == checkpoint.tokenizer.eos_token_id else None
    whole = whole or call.answers[0].tokens
    assert 0 < len(kept) < len(whole)
    assert kept == whole[: len(kept)]
    oracle = TurnOracle(checkpoint, "ethan")
    oracle.add_user_turn(None, "Hello.")
    oracle.add_answer(kept)
    oracle.add_user_turn(None, NEXT)
    assert answered(call) == oracle.answer(40, 80).tokens


@pytest.mark.parametrize("heard", [0, 0.4])
def test_late_truncation_removes_what_was_not_heard_from_the_cache(engine: Engine, frontend, checkpoint, heard):
    """Positions before the removed ones are unchanged, those after them move up."""
    cache = engine.slots.thinker_cache

    def script() -> Script:
        yield from with_controls(message="Hello.")
        yield from with_controls(message=NEXT)
        conversation = engine.conversation(1)
        history, held = conversation.history, cache.buffer[:, conversation.slot]
        (user, first, *_), before, length = history.entries, held.clone(), history.thinker_length
        had = len(first.tokens)
        yield from with_controls(truncate=TruncateControl(1, round(heard * first.spoken_ms)))
        left = had - len(first.tokens)
        stays, values = user.thinker + len(engine.dialect.chat.answer_opening) + len(first.tokens), cache.key_heads
        assert left > 0
        assert (len(first.tokens) > 0) == (heard > 0)
        assert history.thinker_length == length - left
        assert torch.equal(held[:, :, :stays], before[:, :, :stays])
        assert torch.equal(held[:, values:, stays : length - left], before[:, values:, stays + left : length])
        yield from with_controls(message="Go on.")

    call = Call(engine, 1, frontend, script())
    play(call)
    history = engine.conversation(1).history
    engine.close(1)
    expect_lengths(history)
    assert event_of(call, "truncated").heard_text == checkpoint.tokenizer.decode(answer_of(history, 1).tokens)
    assert kinds(call).count("answer_done") == 3


def test_turn_that_is_forgotten_before_its_prefill_has_ended_leaves_no_entry(
    checkpoint: Checkpoint, turn_settings, frontend
):
    engine = Engine(
        checkpoint, turn_settings.with_values(engine={"slots": 1, "prefill_tokens": 1})
    )  # one chunk per tick

    def script() -> Script:
        yield silence(), Controls(items=(ItemControl(Role.USER, "I have a lot to say. " * 40),))
        yield from with_controls(forget=ForgetControl(1, Part.USER))
        yield from with_controls(message=NEXT)

    call = converse(engine, frontend, script())
    assert answered(call) == alone(checkpoint, NEXT)
    assert kinds(call) == ["forgotten", "answer_started", "answer_done"]


@pytest.mark.parametrize("part", ["user", "answer"])
def test_forgotten_entry_leaves_both_caches(engine: Engine, frontend, part):
    def script() -> Script:
        yield from with_controls(message="Hello.")
        yield from with_controls(message=NEXT)
        yield from with_controls(forget=ForgetControl(1, Part(part)))
        yield from with_controls(message="Go on.")

    call = Call(engine, 1, frontend, script())
    play(call)
    history = engine.conversation(1).history
    engine.close(1)
    assert [entry.part for entry in history.of(1)] == [Part.ANSWER if part == "user" else Part.USER]
    expect_lengths(history)
    assert kinds(call).count("answer_done") == 3


def test_conversation_whose_only_turn_is_forgotten_is_as_new(engine, frontend, checkpoint):
    def script() -> Script:
        yield from with_controls(message="Hello.")
        yield from with_controls(forget=ForgetControl(1, Part.ANSWER))
        yield from with_controls(forget=ForgetControl(1, Part.USER))
        yield from with_controls(message=NEXT)

    call = converse(engine, frontend, script())
    assert answered(call) == alone(checkpoint, NEXT)


def test_detection_changes_in_mid_conversation(engine, frontend, checkpoint, questions):
    """From commits to voice activity: the next turn is exact, and its times are on the input clock."""
    manual_ticks = 12

    def script() -> Script:
        user = User()
        for _ in range(manual_ticks):
            user.note((yield silence(), Controls()))
        yield from with_controls(turn={"detection": "server_vad"})
        yield from user.speak(questions[0])
        yield from user.until_quiet()

    call = Call(engine, 1, frontend, script(), **MANUAL)
    play(call)
    engine.close(1)
    assert event_of(call, "speech_started").at_ms >= 320 * (manual_ticks + 1)
    oracle = TurnOracle(checkpoint, "ethan")
    oracle.add_user_turn(call.sound(call.answers[0]))
    assert answered(call) == oracle.answer(40, 80).tokens


@pytest.mark.parametrize(
    ("controls", "code"),
    [
        ({"truncate": TruncateControl(7, 100)}, "nothing_to_truncate"),
        ({"forget": ForgetControl(7, Part.USER)}, "nothing_to_forget"),
        ({"turn": {"threshold": 2.0}}, "bad_control"),
        ({"turn": {"voice": "ethan"}}, "bad_control"),
    ],
)
def test_control_that_cannot_be_applied_is_an_error_and_the_conversation_continues(
    engine: Engine, frontend, controls, code
):
    def script() -> Script:
        yield from with_controls(**controls)
        yield from with_controls(message="Hello.")

    call = converse(engine, frontend, script())
    assert event_of(call, "error").code == code
    assert kinds(call)[1:] == ["answer_started", "answer_done"]


def test_respond_during_an_answer_is_an_error(engine: Engine, frontend):
    def script() -> Script:
        yield from with_controls(message="Hello.", then=Controls(respond=True))

    call = converse(engine, frontend, script())
    assert kinds(call) == ["answer_started", "error", "answer_done"]


def test_item_during_an_answer_follows_the_answer_in_the_history(engine, frontend, checkpoint):
    def script() -> Script:
        yield from with_controls(message="Hello.", then=Controls(items=(ItemControl(Role.SYSTEM, "Be brief."),)))
        yield from with_controls(message=NEXT)

    call = Call(engine, 1, frontend, script())
    play(call)
    kept = list(answer_of(engine.conversation(1).history, 1).tokens)
    engine.close(1)
    oracle = TurnOracle(checkpoint, "ethan")
    oracle.add_user_turn(None, "Hello.")
    oracle.add_answer(kept)
    oracle.messages.append({"role": "system", "content": "Be brief."})
    oracle.add_user_turn(None, NEXT)
    assert answered(call) == oracle.answer(40, 80).tokens


@pytest.mark.parametrize("late", [False, True], ids=["a few seconds", "windows that are read again"])
def test_answer_done_reports_the_input_tokens(engine, frontend, checkpoint, questions, late):
    """The numbers of all tokens and of audio tokens equal those of the oracle's prompt."""
    sound = questions[0]
    if late:
        sound = np.concatenate([*[sound // 8] * 3])[: 20 * 16_000]
        sound[-16_000:] *= 8
    call = Call(engine, 1, frontend, asking(sound), **MANUAL)
    play(call)
    engine.close(1)
    oracle = TurnOracle(checkpoint, "ethan")
    oracle.add_user_turn(call.sound(call.answers[0]))
    prompt = oracle.prompt()
    done = event_of(call, "answer_done")
    assert done.input_tokens == len(prompt)
    assert done.input_audio_tokens == prompt.count(checkpoint.model.config.thinker_config.audio_token_id)
