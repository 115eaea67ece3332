"""The floor of a conversation: the user, the assistant, or neither of them speaks."""

from __future__ import annotations

from contract.errors import ErrorCode
from contract.events import (
    AnswerDone,
    AnswerStarted,
    Committed,
    Error,
    Event,
    InputDropped,
    Interrupted,
    Reset,
    SpeechStarted,
    SpeechStopped,
)


class Floor:
    """Follows the engine's events: whether the user speaks, and whether an answer is due or in progress."""

    def __init__(self, creates_responses: bool):
        """Begin with a quiet floor; `creates_responses`: the engine answers a user's turn without a request."""
        self.creates_responses = creates_responses
        self.user_speaks = False
        self.answer_is_due = False

    @property
    def is_quiet(self) -> bool:
        """True if neither the user nor the assistant speaks, and no answer is due."""
        return not self.user_speaks and not self.answer_is_due

    def note(self, event: Event) -> None:
        """Follow one event of the engine."""
        match event:
            case SpeechStarted():
                self.user_speaks = True
            case SpeechStopped() | InputDropped():
                self.user_speaks = False
            case Committed():
                self.answer_is_due = self.creates_responses
            case AnswerStarted():
                self.answer_is_due = True
            case Reset():
                self.user_speaks = self.answer_is_due = False
            case AnswerDone() | Interrupted() | Error(code=ErrorCode.TURN_TOO_LONG):
                self.answer_is_due = False
