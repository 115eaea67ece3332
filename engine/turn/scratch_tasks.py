"""Questions to the model about a conversation, computed in the scratch slot after an answer has begun."""

from __future__ import annotations

from config.settings import TurnSettings
from contract.events import Emotion, Event, Language
from engine.turn.actions import Question
from engine.turn.events import TickEvents
from engine.turn.history import UserAudio

LABELS: dict[str, type[Event]] = {"emotion": Emotion, "language": Language}


class ScratchTasks:
    """The questions about a speaker that wait."""

    def __init__(self, events: TickEvents) -> None:
        self._events = events
        self._questions: list[Question] = []

    def __bool__(self) -> bool:
        return bool(self._questions)

    def renew(self, entry: UserAudio | None, options: TurnSettings) -> None:
        """Queue the questions that the options request about a user's speech, in place of older ones."""
        names = [name for name in LABELS if entry and options.selected_labels(name)]
        self._questions = [Question(entry, name) for name in names if entry]

    def drop(self, turn: int) -> None:
        """Drop the questions about a turn, whose audio leaves the history."""
        self._questions = [question for question in self._questions if question.entry.turn != turn]

    def keep_requested(self, options: TurnSettings) -> None:
        """Drop the questions that the options do not request any more."""
        self._questions = [question for question in self._questions if options.selected_labels(question.name)]

    def take(self) -> Question:
        """Remove and return the next question; there must be one."""
        return self._questions.pop(0)

    def report(self, question: Question, label: str, probability: float) -> None:
        """Emit the answer to a question."""
        assert question.entry.span_ms is not None
        start_ms, end_ms = question.entry.span_ms
        span = {"audio_start_ms": start_ms, "audio_end_ms": end_ms}
        self._events.emit(LABELS[question.name], label=label, probability=round(probability, 4), **span)
