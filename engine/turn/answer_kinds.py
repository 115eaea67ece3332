"""The kinds of answers: what an answer leaves in the history, and what ends it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar, NamedTuple

from engine.turn.history import OUT_OF_BAND, Answer, History
from engine.turn.prefill_queue import PrefillQueue


class Drawn(NamedTuple):
    """Random numbers that a conversation has used."""

    text_tokens: int = 0
    codec_frames: int = 0


class AnswerKind(ABC):
    """Effect of an answer on its conversation."""

    event_fields: ClassVar[Mapping[str, bool]] = MappingProxyType({})
    cancelled_by: ClassVar[str]  # the control that cancels the answer
    yields_to_any_speech: ClassVar[bool]  # the user's speech ends it, also if `interrupt` is off
    consumes_input: ClassVar[bool]  # audio during the answer is part of no later turn
    too_long: ClassVar[str]  # message if it does not fit into the context

    @abstractmethod
    def interrupt(self, answer: Answer, tokens: int, history: History, queue: PrefillQueue, is_queued: bool) -> None:
        """Update the history after an interruption; the user has heard at most `tokens` text tokens."""

    @abstractmethod
    def leave(self, answer: Answer, history: History, queue: PrefillQueue, drawn: Drawn) -> Drawn:
        """Update the history when the answer has ended in any way; return the random numbers that count as used."""


class InHistory(AnswerKind):
    """An answer that becomes part of the history."""

    cancelled_by = "cancel"
    yields_to_any_speech = False
    consumes_input = True
    too_long = "the user's turn is dropped"

    def interrupt(self, answer: Answer, tokens: int, history: History, queue: PrefillQueue, is_queued: bool) -> None:
        """Keep what was heard; the turn of a queued answer stays without an answer."""
        if is_queued:
            queue.withdraw_opening()
        else:
            history.shorten(answer, tokens)
            answer.is_interrupted = True

    def leave(self, answer: Answer, history: History, queue: PrefillQueue, drawn: Drawn) -> Drawn:
        """Keep the answer."""
        return drawn


class OutOfBand(AnswerKind):
    """An answer to the current history that the history does not keep."""

    event_fields = MappingProxyType({"out_of_band": True})
    cancelled_by = "out_of_band"
    yields_to_any_speech = True
    consumes_input = False
    too_long = "the out-of-band answer is dropped"

    def __init__(self, drawn: Drawn):
        """Remember the random numbers that were used before the answer."""
        self._drawn_before = drawn

    def interrupt(self, answer: Answer, tokens: int, history: History, queue: PrefillQueue, is_queued: bool) -> None:
        """Keep what was heard until the answer leaves."""
        if not is_queued:
            history.shorten(answer, tokens)

    def leave(self, answer: Answer, history: History, queue: PrefillQueue, drawn: Drawn) -> Drawn:
        """Remove the answer and its instructions, which are the last entries, and restore the random numbers."""
        queue.drop(OUT_OF_BAND)
        history.remove(OUT_OF_BAND)
        return self._drawn_before
