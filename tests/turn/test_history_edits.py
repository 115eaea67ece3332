"""What a client does to the history itself: adds messages, asks for an answer, cuts and forgets."""

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
    """The answer to a message that nothing comes before."""
    oracle = TurnOracle(checkpoint, "ethan")
    oracle.hear(None, text)
    return oracle.answer(40, 80).tokens


def asked(then: Controls | None = None, **controls) -> Script:
    """One tick with controls, one with others where there are such, then silence until nobody speaks."""
    user = User()
    user.note((yield silence(), Controls(**controls)))
    if then:
        user.note((yield silence(), then))
    yield from user.until_quiet()


def test_messages_that_are_added_are_history_for_the_answer_that_is_asked_for(engine, frontend, checkpoint: Checkpoint):
    """Of all three roles; the oracle writes them with the checkpoint's own template."""
    items = (
        ItemControl(Role.USER, "Hello there."),
        ItemControl(Role.ASSISTANT, "Hello. How can I help?"),
        ItemControl(Role.SYSTEM, "From now on, be brief. " * 30),
        ItemControl(Role.USER, "What is the weather like?"),
    )
    call = converse(engine, frontend, asked(items=items, respond=True), voice="ethan", system_prompt="Be kind.")
    oracle = TurnOracle(checkpoint, "ethan", "Be kind.")
    for item in items:
        if item.role == "user":
            oracle.hear(None, item.text)
        elif item.role == "assistant":
            oracle.say(checkpoint.tokenizer.encode(item.text, add_special_tokens=False))
        else:
            oracle.messages.append({"role": "system", "content": item.text})
    expected = oracle.answer(40, 80)
    assert answered(call) == expected.tokens
    assert torch.equal(torch.cat(call.answers[-1].codes, 1)[:, : expected.codes.shape[1]], expected.codes)
    assert [event.turn for event in call.events if event.type == "committed"] == [1, 2, 3, 4]


def test_items_alone_ask_for_no_answer(engine: Engine, frontend):
    call = converse(engine, frontend, asked(items=(ItemControl(Role.USER, "Hello."),)))
    assert kinds(call) == []


def test_an_answer_is_asked_for_before_anybody_has_spoken(engine: Engine, frontend):
    """As an agent that greets: the prompt alone. (transformers' talker cannot begin without a user's part.)"""
    call = converse(engine, frontend, asked(respond=True), system_prompt="Greet the user.")
    assert kinds(call) == ["answer_started", "answer_done"]
    assert call.answers[0].tokens


def test_a_turn_that_asks_for_no_answer_is_answered_when_the_client_asks(engine, frontend, checkpoint, questions):
    def script() -> Script:
        yield from asking(questions[0], then=3)
        yield from asked(items=(ItemControl(Role.USER, "In one word."),), respond=True)

    call = Call(engine, 1, frontend, script(), **MANUAL, create_response=False)
    play(call)
    engine.close(1)
    assert kinds(call) == ["answer_started", "answer_done"]
    spoken = next(event for event in call.events if event.type == "committed")
    call.answers[0].audio_ms = (spoken.audio_start_ms, spoken.audio_end_ms)
    oracle = TurnOracle(checkpoint, "ethan")
    oracle.hear(call.sound(call.answers[0]))
    oracle.hear(None, "In one word.")
    assert answered(call) == oracle.answer(40, 80).tokens


def test_a_truncated_answer_is_history_as_far_as_it_was_heard(engine, frontend, checkpoint):
    """Of an answer that was emitted whole, the client says later how much of it was heard."""

    def script() -> Script:
        yield from asked(message="Hello.")
        yield from asked(truncate=TruncateControl(1, 4000))
        yield from asked(message=NEXT)

    call = Call(engine, 1, frontend, script())
    play(call)
    kept = list(answer_of(engine.conversation(1).history, 1).tokens)
    engine.close(1)
    whole = call.answers[0].tokens[:-1] if call.answers[0].tokens[-1] == checkpoint.tokenizer.eos_token_id else None
    whole = whole or call.answers[0].tokens
    assert 0 < len(kept) < len(whole)
    assert kept == whole[: len(kept)]
    oracle = TurnOracle(checkpoint, "ethan")
    oracle.hear(None, "Hello.")
    oracle.say(kept)
    oracle.hear(None, NEXT)
    assert answered(call) == oracle.answer(40, 80).tokens


@pytest.mark.parametrize("heard", [0, 0.4])
def test_a_late_truncation_takes_what_was_not_heard_out_of_the_cache(engine: Engine, frontend, checkpoint, heard):
    """And nothing else: what was heard stays where it is, what follows moves up."""
    cache = engine.slots.thinker_cache

    def script() -> Script:
        yield from asked(message="Hello.")
        yield from asked(message=NEXT)
        conversation = engine.conversation(1)
        history, held = conversation.history, cache.buffer[:, conversation.slot]
        (user, first, *_), before, length = history.entries, held.clone(), history.thinker_length
        had = len(first.tokens)
        yield from asked(truncate=TruncateControl(1, round(heard * first.spoken_ms)))
        left = had - len(first.tokens)
        stays, values = user.thinker + len(engine.dialect.chat.answer_opening) + len(first.tokens), cache.key_heads
        assert left > 0
        assert (len(first.tokens) > 0) == (heard > 0)
        assert history.thinker_length == length - left
        assert torch.equal(held[:, :, :stays], before[:, :, :stays])
        assert torch.equal(held[:, values:, stays : length - left], before[:, values:, stays + left : length])
        yield from asked(message="Go on.")

    call = Call(engine, 1, frontend, script())
    play(call)
    history = engine.conversation(1).history
    engine.close(1)
    expect_lengths(history)
    assert event_of(call, "truncated").heard_text == checkpoint.tokenizer.decode(answer_of(history, 1).tokens)
    assert kinds(call).count("answer_done") == 3


def test_a_turn_that_is_forgotten_before_all_of_it_was_read_is_gone(checkpoint: Checkpoint, turn_settings, frontend):
    engine = Engine(checkpoint, turn_settings.with_values(engine={"slots": 1, "prefill_tokens": 1}))  # a chunk a tick

    def script() -> Script:
        yield silence(), Controls(items=(ItemControl(Role.USER, "I have a lot to say. " * 40),))
        yield from asked(forget=ForgetControl(1, Part.USER))
        yield from asked(message=NEXT)

    call = converse(engine, frontend, script())
    assert answered(call) == alone(checkpoint, NEXT)
    assert kinds(call) == ["forgotten", "answer_started", "answer_done"]


@pytest.mark.parametrize("part", ["user", "answer"])
def test_what_is_forgotten_leaves_both_caches(engine: Engine, frontend, part):
    def script() -> Script:
        yield from asked(message="Hello.")
        yield from asked(message=NEXT)
        yield from asked(forget=ForgetControl(1, Part(part)))
        yield from asked(message="Go on.")

    call = Call(engine, 1, frontend, script())
    play(call)
    history = engine.conversation(1).history
    engine.close(1)
    assert [entry.part for entry in history.of(1)] == [Part.ANSWER if part == "user" else Part.USER]
    expect_lengths(history)
    assert kinds(call).count("answer_done") == 3


def test_forgetting_the_only_turn_leaves_a_conversation_as_new(engine, frontend, checkpoint):
    def script() -> Script:
        yield from asked(message="Hello.")
        yield from asked(forget=ForgetControl(1, Part.ANSWER))
        yield from asked(forget=ForgetControl(1, Part.USER))
        yield from asked(message=NEXT)

    call = converse(engine, frontend, script())
    assert answered(call) == alone(checkpoint, NEXT)


def test_the_detection_of_turns_changes_in_mid_conversation(engine, frontend, checkpoint, questions):
    """From commits to voice activity; the turn that is heard then is as exact as any, and its times are the clock's."""
    manual_ticks = 12

    def script() -> Script:
        user = User()
        for _ in range(manual_ticks):
            user.note((yield silence(), Controls()))
        yield from asked(turn={"detection": "server_vad"})
        yield from user.say(questions[0])
        yield from user.until_quiet()

    call = Call(engine, 1, frontend, script(), **MANUAL)
    play(call)
    engine.close(1)
    assert event_of(call, "speech_started").at_ms >= 320 * (manual_ticks + 1)
    oracle = TurnOracle(checkpoint, "ethan")
    oracle.hear(call.sound(call.answers[0]))
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
def test_what_cannot_be_done_is_an_error_and_the_conversation_goes_on(engine: Engine, frontend, controls, code):
    def script() -> Script:
        yield from asked(**controls)
        yield from asked(message="Hello.")

    call = converse(engine, frontend, script())
    assert event_of(call, "error").code == code
    assert kinds(call)[1:] == ["answer_started", "answer_done"]


def test_respond_while_an_answer_is_given_is_an_error(engine: Engine, frontend):
    def script() -> Script:
        yield from asked(message="Hello.", then=Controls(respond=True))

    call = converse(engine, frontend, script())
    assert kinds(call) == ["answer_started", "error", "answer_done"]


def test_an_item_that_comes_during_an_answer_follows_it_in_the_history(engine, frontend, checkpoint):
    def script() -> Script:
        yield from asked(message="Hello.", then=Controls(items=(ItemControl(Role.SYSTEM, "Be brief."),)))
        yield from asked(message=NEXT)

    call = Call(engine, 1, frontend, script())
    play(call)
    kept = list(answer_of(engine.conversation(1).history, 1).tokens)
    engine.close(1)
    oracle = TurnOracle(checkpoint, "ethan")
    oracle.hear(None, "Hello.")
    oracle.say(kept)
    oracle.messages.append({"role": "system", "content": "Be brief."})
    oracle.hear(None, NEXT)
    assert answered(call) == oracle.answer(40, 80).tokens


@pytest.mark.parametrize("late", [False, True], ids=["a few seconds", "windows that are read again"])
def test_an_answer_says_how_many_tokens_it_has_read(engine, frontend, checkpoint, questions, late):
    """As many as the oracle's prompt has, those of sound among them."""
    sound = questions[0]
    if late:
        sound = np.concatenate([*[sound // 8] * 3])[: 20 * 16_000]
        sound[-16_000:] *= 8
    call = Call(engine, 1, frontend, asking(sound), **MANUAL)
    play(call)
    engine.close(1)
    oracle = TurnOracle(checkpoint, "ethan")
    oracle.hear(call.sound(call.answers[0]))
    prompt = oracle.prompt()
    done = event_of(call, "answer_done")
    assert done.input_tokens == len(prompt)
    assert done.input_audio_tokens == prompt.count(checkpoint.model.config.thinker_config.audio_token_id)
