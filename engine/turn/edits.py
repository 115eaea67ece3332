"""Edits of the history that a client requests: an answer is shortened to what was heard, an entry is removed."""

from __future__ import annotations

import math

from contract.controls import ForgetControl, TruncateControl
from contract.errors import ErrorCode
from contract.events import Forgotten, Truncated
from engine.turn.actions import TurnConfig
from engine.turn.answers import Answers
from engine.turn.events import TickEvents
from engine.turn.history import Answer, History
from engine.turn.prefill_queue import PrefillQueue
from engine.turn.user_input import UserInput


class HistoryEdits:
    """Applies the controls `truncate` and `forget`."""

    def __init__(
        self,
        config: TurnConfig,
        history: History,
        queue: PrefillQueue,
        answers: Answers,
        user: UserInput,
        events: TickEvents,
    ):
        self._config, self._history, self._queue = config, history, queue
        self._answers, self._user, self._events = answers, user, events

    def truncate(self, control: TruncateControl) -> None:
        """Truncate an answer to the text that the user has heard."""
        answer = next((e for e in self._history.of(control.turn) if isinstance(e, Answer)), None)
        if answer is None or self._is_current(control.turn):
            message = f"truncate: expected a turn whose answer has ended, got turn {control.turn}"
            self._events.refuse(ErrorCode.NOTHING_TO_TRUNCATE, message)
            return
        before = len(answer.tokens)
        if answer.is_interrupted or not answer.spoken_ms:
            heard = math.ceil(control.heard_ms / 1000 * self._config.heard_tokens_per_s)
        else:
            heard = math.ceil(control.heard_ms / answer.spoken_ms * before)
        self._history.shorten(answer, min(heard, before))
        answer.is_interrupted = answer.is_interrupted or len(answer.tokens) < before
        self._events.emit(Truncated, turn=answer.turn, heard_text=self._config.decode(answer.tokens))

    def forget(self, control: ForgetControl) -> bool:
        """Remove one part of a turn; return False, after an error event, if it cannot be removed."""
        number, part = control.turn, control.part
        is_here = bool(self._history.of(number)) or self._queue.holds(number)
        is_open = self._user.open is not None and self._user.open.number == number
        if not is_here or is_open or self._is_current(number):
            message = f"forget: expected a turn of the history that has ended, got turn {number}"
            fields = {"turn": number, "part": part.value}
            self._events.refuse(ErrorCode.NOTHING_TO_FORGET, message, **fields)
            return False
        self._queue.drop_part(number, part)
        for entry in self._history.of(number):
            if entry.part is part:
                self._history.forget(entry)
        self._events.emit(Forgotten, turn=number, part=part.value)
        return True

    def _is_current(self, turn: int) -> bool:
        current = self._answers.current
        return current is not None and current.answer.turn == turn
