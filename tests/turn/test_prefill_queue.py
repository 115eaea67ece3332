"""The end of an answer goes with what is prefilled next, whatever becomes of that."""

from __future__ import annotations

from contract.controls import TruncateControl
from engine.turn.history import Turn
from engine.turn.prefill_queue import MAX_TEXT_TOKENS, PrefillQueue
from tests.test_turn_conversation import END, OPENING, advance, conversation, prefill_all

CLOSE = [2, 14]


def closings(queue: PrefillQueue) -> list[list[int]]:
    return [chunk.closing for chunk in queue]


def test_it_waits_for_the_first_chunk():
    queue = PrefillQueue()
    queue.close(CLOSE)
    queue.add(Turn(1), [20])
    queue.add(Turn(2), [20])
    assert closings(queue) == [CLOSE, []]


def test_it_is_replaced_in_a_chunk_that_has_it():
    queue = PrefillQueue()
    queue.close(CLOSE[1:])
    queue.add(Turn(1), [20])
    queue.close(CLOSE)
    assert closings(queue) == [CLOSE]


def test_a_dropped_turn_leaves_it_to_the_next():
    queue, first, second = PrefillQueue(), Turn(1), Turn(2)
    queue.close(CLOSE)
    queue.add(first, [20])
    queue.add(second, [21])
    queue.drop(first)
    assert [chunk.user for chunk in queue] == [[21]]
    assert closings(queue) == [CLOSE]
    queue.drop(second)
    queue.add(Turn(3), [22])
    assert closings(queue) == [CLOSE]


def test_text_is_cut_into_pieces_and_the_opening_goes_with_the_last():
    queue, tokens = PrefillQueue(), list(range(2 * MAX_TEXT_TOKENS + 1))
    queue.add(Turn(1), tokens, None, OPENING)
    assert [len(chunk.user) for chunk in queue] == [MAX_TEXT_TOKENS, MAX_TEXT_TOKENS, 1]
    assert [chunk.opening for chunk in queue] == [[], [], OPENING]
    assert [token for chunk in queue for token in chunk.user] == tokens


def test_an_answer_that_is_truncated_while_the_next_turn_waits_is_closed_whole():
    """The model had ended it itself: its end token goes with what was cut, and comes again with the next turn."""
    one = conversation(detection="manual")
    advance(one, message="hello")
    prefill_all(one)
    one.decoded([30, 31, 32, END], [1, 1, 1, 512])
    advance(one, message="again")
    chunk = one.next_chunk
    assert chunk.closing == CLOSE[1:]
    advance(one, truncate=TruncateControl(1, 80))
    assert one.next_chunk is chunk
    assert chunk.closing == CLOSE
    turn = one.history.turns[-1]
    assert turn.tokens == [30]
    assert turn.answer == len(OPENING) + 1
