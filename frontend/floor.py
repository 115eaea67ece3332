"""Who speaks, as far as the engine's events tell."""

from __future__ import annotations

import time

from opentelemetry.trace import Span

from frontend import traces
from frontend.metrics import RESPONSE
from frontend.pcm16.frames import Event


class Floor:
    """Whether the user speaks, and whether an answer is due or being given."""

    def __init__(self, creates_responses: bool):
        """`creates_responses`: whether a turn that has ended is answered by itself."""
        self.creates_responses = creates_responses
        self.user_speaks = False
        self.answer_is_due = False
        self.answers = 0  # that have begun
        self._due: tuple[float, Span] | None = None  # when a turn was committed, and the span until its answer begins

    @property
    def is_quiet(self) -> bool:
        """Whether nobody speaks, and nobody is about to."""
        return not self.user_speaks and not self.answer_is_due

    def note(self, event: Event) -> None:
        """Takes an event of the engine."""
        kind = event["type"]
        if kind == "speech_started":
            self.user_speaks = True
        elif kind == "speech_stopped":
            self.user_speaks = False
        elif kind == "committed":
            self.answer_is_due = self.creates_responses
            self._due = time.monotonic(), traces.begin("response")
        elif kind == "answer_started":
            self.answer_is_due = True
            self.answers += 1
            if self._due:
                committed_s, response = self._due
                RESPONSE.observe(time.monotonic() - committed_s)
                response.end()
                self._due = None
        elif kind == "reset":
            self.user_speaks = self.answer_is_due = False
            if self._due:
                self._due[1].end()
            self._due = None
        elif kind in ("answer_done", "interrupted") or event.get("code") == "turn_too_long":
            self.answer_is_due = False
