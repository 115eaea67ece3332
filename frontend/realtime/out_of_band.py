"""Responses out of band: to the conversation as it is, which keeps nothing of them."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from frontend.realtime.clock import Clock
from frontend.realtime.events import Event, RealtimeError
from frontend.realtime.response import Response, State

MAX_WAITING = 8  # of one conversation


class Wanted(NamedTuple):
    """A response that the client knows of, its instructions, and its options of turns, fixed when it was requested."""

    response: Response
    instructions: str
    options: Mapping[str, Any]


class OutOfBand:
    """One at a time, each when nobody speaks and no other response is open; the user's speech ends it."""

    def __init__(self, clock: Clock, send: Callable[..., None], fall_silent: Callable[[], object]):
        """`fall_silent` ends what is being played."""
        self._clock, self._send, self._fall_silent = clock, send, fall_silent
        self._waiting: deque[Wanted] = deque()
        self._given: Wanted | None = None  # that the engine has been asked for
        self._is_refused = False  # the engine was busy, and nothing has happened since

    @property
    def is_open(self) -> bool:
        """Whether the engine has been asked for one."""
        return self._given is not None

    @property
    def response_id(self) -> str | None:
        """Of the one that is open."""
        return self._given.response.id if self._given else None

    @property
    def modality(self) -> str | None:
        """What the one that is open is made of."""
        return self._given.response.modality if self._given else None

    def ask(self, wanted: Wanted) -> None:
        """One more. Raises `RealtimeError` where too many wait."""
        if len(self._waiting) >= MAX_WAITING:
            message = f"{len(self._waiting)} responses out of band wait, expected at most {MAX_WAITING}"
            raise RealtimeError(message, code="conversation_already_has_active_response")
        self._waiting.append(wanted)
        self._send(*wanted.response.created())

    def begin_next(self) -> None:
        """Nobody speaks: the engine is asked for the next one."""
        if self._given or self._is_refused or not self._waiting:
            return
        self._given = self._waiting.popleft()
        wanted = {"instructions": self._given.instructions, "turn": self._given.options}
        self._clock.ask(out_of_band=json.dumps(wanted))

    def note_other(self, event: Event) -> None:
        """What the engine was busy with may be over."""
        self._is_refused = self._is_refused and event["type"] in ("speech_started", "text")

    def cancel(self, response_id: Any) -> bool:
        """Ends the response of this id, if it is one of these."""
        if self._given and self._given.response.id == response_id and self._given.response.is_due:
            if not self._given.response.is_cancelled:
                self._given.response.is_cancelled = True
                self._clock.ask(out_of_band=json.dumps({"cancel": True}))
            return True
        for wanted in self._waiting:
            if wanted.response.id == response_id:
                self._waiting.remove(wanted)
                self._send(*wanted.response.stop("client_cancelled"))
                return True
        return False

    def tell(self, event: Event) -> None:
        """An event of the engine about the one that is open."""
        if self._given is None:  # it has failed here
            return
        response = self._given.response
        match event["type"]:
            case "answer_started":
                self._send(*response.begin(event["turn"], None))
            case "text":
                self._send(*response.text(event["text"]))
            case "answer_done":
                response.ended(event)
            case "interrupted":
                self._send(*response.interrupted(event))
                if response.modality == "audio":
                    self._fall_silent()
            case "error" if event["code"] == "answer_active" and not response.is_cancelled:
                self._waiting.appendleft(self._given)
                self._given, self._is_refused = None, True
            case "error" if event["code"] == "answer_active":
                self._send(*response.stop("client_cancelled"))
            case "error":
                self._send(*response.fail(event["code"], event["message"]))
        self._close()

    def sound(self, pcm: bytes) -> None:
        """A tick's sound."""
        if self._given:
            self._send(*self._given.response.sound(pcm))
            self._close()

    def fail(self, code: str, message: str) -> None:
        """The engine cannot go on."""
        for wanted in [*([self._given] if self._given else []), *self._waiting]:
            self._send(*wanted.response.fail(code, message))
        self._waiting.clear()
        self._given = None

    def _close(self) -> None:
        if self._given and self._given.response.state is State.DONE:
            self._given = None
