"""The prefill queue, and the end of an answer, which is prefilled with whatever comes next."""

from __future__ import annotations

from contract.controls import TruncateControl
from engine.clip import Clip
from engine.turn.history import Answer, UserAudio, UserText
from engine.turn.prefill_queue import MAX_TEXT_TOKENS, PrefillQueue
from tests.turn_machine import END, OPENING, advance, answer_of, conversation, prefill_all

CLOSE = [2, 14]


def answered(tokens: list[int]):
    """Return a conversation whose first message was answered with tokens."""
    one = conversation(detection="manual")
    advance(one, message="hello")
    prefill_all(one)
    one.decoded(tokens, [1, 1, 1, 512])
    return one


def test_end_of_an_answer_goes_with_the_next_chunk_and_is_prefilled_once():
    one = answered([30, 31, 32, END])
    assert one.next_chunk is None
    advance(one, message="x" * (MAX_TEXT_TOKENS + 1))
    assert one.next_chunk.closing == CLOSE[1:]
    closings = []
    while prefill := one.next_prefill():
        closings.append(prefill.chunk.closing)
    assert closings == [CLOSE[1:], []]


def test_end_of_an_answer_goes_with_the_next_turn_if_the_first_is_dropped():
    one = answered([30, 31, 32, END])
    advance(one, 30, listen=True)
    advance(one, 30)
    assert one.next_chunk.closing == CLOSE[1:]
    advance(one, listen=True)
    assert one.next_chunk is None
    advance(one, commit=True)
    assert one.next_chunk.closing == CLOSE[1:]


def test_end_of_an_answer_leaves_with_its_answer():
    one = answered([30, 31, 32, END])
    one.history.remove(1)
    assert one.history.closing == []


def test_text_is_split_into_pieces_and_the_opening_goes_with_the_last():
    queue, tokens = PrefillQueue(), list(range(2 * MAX_TEXT_TOKENS + 1))
    queue.add(UserText(1, "text"), tokens)
    queue.add_opening(Answer(1), OPENING)
    assert [len(chunk.content) for chunk in queue] == [MAX_TEXT_TOKENS, MAX_TEXT_TOKENS, 1]
    assert [chunk.opening for chunk in queue] == [[], [], OPENING]
    assert [token for chunk in queue for token in chunk.content] == tokens


def test_answer_to_the_history_is_a_chunk_without_content():
    queue = PrefillQueue()
    queue.add(UserText(1, "text"), [20])
    queue.add_opening(Answer(2), OPENING)
    assert [(chunk.turn, chunk.content, chunk.opening) for chunk in queue] == [(1, [20], []), (2, [], OPENING)]
    queue.withdraw_opening()
    assert [chunk.turn for chunk in queue] == [1]


def test_only_windows_of_the_next_chunks_turn_are_queued_again():
    """The next turn has begun while the last chunk of the one before waits."""
    queue, first, second = PrefillQueue(), UserAudio(1), UserAudio(2)
    queue.add(first, [7], Clip(0, 0, 100))
    queue.add(first, [8], Clip(0, 100, 200))
    queue.add(first, [9], Clip(0, 200, 250, 250))
    queue.add(second, [10], Clip(250, 250, 350))
    queue.take()
    queue.take()
    assert queue.again(100) == 1
    clips = [chunk.clip for chunk in queue]
    assert clips == [Clip(0, 100, 200, 250), Clip(0, 200, 250, 250), Clip(250, 250, 350)]


def test_answer_that_is_truncated_while_the_next_turn_waits_gets_its_whole_end_again():
    """The model ended the answer: its end token is removed with the text, and prefilled with the next turn."""
    one = answered([30, 31, 32, END])
    advance(one, message="again")
    assert one.next_chunk.closing == CLOSE[1:]
    advance(one, truncate=TruncateControl(1, 80))
    assert one.next_chunk.closing == CLOSE
    answer = answer_of(one.history, 1)
    assert answer.tokens == [30]
    assert answer.thinker == len(OPENING) + 1
