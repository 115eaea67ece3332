"""Room in a conversation's context: the oldest turns are evicted, and a turn that does not fit is dropped."""

from __future__ import annotations

from typing import TYPE_CHECKING

from contract.errors import ErrorCode
from contract.events import TurnsDropped
from engine.turn.answer_kinds import InHistory
from engine.turn.history import Room

if TYPE_CHECKING:  # `conversation` imports this module
    from engine.turn.conversation import TurnConversation


class Context:
    """Makes room in the caches of one conversation, and reports what was removed for it."""

    def __init__(self, conversation: TurnConversation):
        self._one = conversation

    def make_room(self, turn: int, thinker: int, talker: int, may_evict: bool = True) -> Room:
        """Evict the oldest turns, except `turn`, until this many positions are free in each cache."""
        one = self._one
        room = one.history.make_room(turn, thinker, talker, may_evict)
        left = len(one.history.turns) + len(room.evicted)
        for count, evicted in enumerate(room.evicted, 1):
            one.scratch.drop(evicted)
            one.tick_events.emit(TurnsDropped, turn=evicted, count=1, left=left - count)
        return room

    def drop_turn(self, turn: int) -> None:
        """Drop a turn that is being prefilled and does not fit, with its queued answer."""
        one, config = self._one, self._one.config
        one.queue.drop(turn)
        has_older = any(entry.turn != turn for entry in one.history.entries)
        one.history.remove(turn)
        withdrawn = one.answers.withdraw(turn)
        kind = withdrawn.kind if withdrawn else InHistory()
        if kind.consumes_input and (one.input.open is None or one.input.open.number == turn):
            one.input.overflow(one.clock, one.turn_taking.detector.is_speech)
        reason = f"expected at most {config.talker_positions} positions (engine.context_s), got more"
        if config.stops_when_full and has_older:
            reason = "the context is full (engine.context_full = 'stop'): reset the conversation"
        one.tick_events.refuse(ErrorCode.TURN_TOO_LONG, f"{kind.too_long}: {reason}", **kind.event_fields)
