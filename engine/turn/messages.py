"""Text that a client adds to a conversation: what the user types, and items that get no answer."""

from __future__ import annotations

from contract.controls import ItemControl, Role
from contract.errors import ErrorCode
from contract.events import Committed
from engine.turn.actions import TurnConfig
from engine.turn.events import TickEvents
from engine.turn.history import History, Message, UserText
from engine.turn.prefill_queue import PrefillQueue


class Messages:
    """Queues texts; owns the items that wait for the end of an answer."""

    def __init__(self, config: TurnConfig, history: History, queue: PrefillQueue, events: TickEvents):
        self.waiting: list[ItemControl] = []
        self._config, self._history, self._queue, self._events = config, history, queue, events

    def add_typed(self, text: str) -> UserText | None:
        """Queue a typed message as a turn that gets an answer; None, and an error event, if it is too long."""
        chat, longest = self._config.chat, self._history.longest_turn
        tokens = chat.typed(text)
        if len(tokens) > longest:
            expected = f"expected at most {longest} tokens (engine.context_s)"
            self._events.refuse(
                ErrorCode.TURN_TOO_LONG, f"the user's message is dropped: {expected}, got {len(tokens)}"
            )
            return None
        entry = UserText(self._history.new_turn(), text)
        self._events.emit(Committed, turn=entry.turn)
        self._queue.add(entry, [*tokens, *chat.close])
        return entry

    def add_waiting(self) -> None:
        """Queue the items that wait."""
        items, self.waiting = self.waiting, []
        for item in items:
            self._add(item)

    def _add(self, item: ItemControl) -> None:
        chat, longest, turn = self._config.chat, self._history.longest_turn, self._history.new_turn()
        is_user = item.role is Role.USER
        tokens = chat.typed(item.text) if is_user else chat.message(item.role.value, item.text)
        if len(tokens) > longest:
            expected = f"expected at most {longest} tokens (engine.context_s)"
            message = f"an item is dropped: {expected}, got {len(tokens)}"
            self._events.refuse(ErrorCode.TURN_TOO_LONG, message, what="item")
            return
        self._events.emit(Committed, turn=turn)
        if is_user:
            self._queue.add(UserText(turn, item.text), [*tokens, *chat.close])
        else:
            self._queue.add(Message(turn, item.role, item.text), tokens)
