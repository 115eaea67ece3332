"""How many come in: a place in the engine is taken by a conversation's first sound, not by its WebSocket."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus

from config.bridge import BridgeSettings
from frontend import metrics
from frontend.access import Caller, RefusedError

RETRY_AFTER_S = 5


class Admission:
    """Counts WebSockets and conversations, and refuses one too many: Triton would let it wait in silence."""

    def __init__(self, settings: BridgeSettings):
        self._settings = settings
        self.slots = 0  # of the engine; 0: not known, then the engine alone refuses
        self.sockets = 0
        self._places: Counter[str] = Counter()  # conversations of each caller
        self.is_draining = False
        metrics.CONVERSATIONS.set_function(lambda: self.conversations)
        metrics.SOCKETS.set_function(lambda: self.sockets)

    @property
    def conversations(self) -> int:
        """Those that hold a place."""
        return self._places.total()

    def refusal(self, caller: Caller | None = None) -> RefusedError | None:
        """Why no conversation could begin now, of anybody or of this caller."""
        unavailable, most = HTTPStatus.SERVICE_UNAVAILABLE, self._settings.conversations_per_client
        if self.is_draining:
            return RefusedError(unavailable, "draining", "the server is about to end, try another", RETRY_AFTER_S)
        if 0 < self.slots <= self.conversations:
            message = f"all {self.slots} slots hold a conversation (engine.slots), try again later"
            return RefusedError(unavailable, "full", message, RETRY_AFTER_S)
        if caller and 0 < most <= self._places[caller.name]:
            message = f"{most} conversations of yours are open (bridge.conversations_per_client), end one first"
            return RefusedError(HTTPStatus.TOO_MANY_REQUESTS, "too_many_conversations", message, RETRY_AFTER_S)
        return None

    @contextmanager
    def socket(self, caller: Caller, resumes: bool = False) -> Iterator[Reservation]:
        """A WebSocket of a caller, for as long as it is open; one that resumes has its place. Raises `RefusedError`."""
        if not resumes and (refusal := self.refusal(caller)):
            raise refusal
        if self.sockets >= self._settings.sockets:
            message = f"{self.sockets} WebSockets are open (bridge.sockets), try again later"
            raise RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, "too_many_sockets", message, RETRY_AFTER_S)
        place = Reservation(self, caller)
        self.sockets += 1
        try:
            yield place
        finally:
            self.sockets -= 1
            place.leave()

    def take(self, caller: Caller) -> None:
        """A place for a conversation of a caller. Raises `RefusedError`."""
        if refusal := self.refusal(caller):
            raise refusal
        self._places[caller.name] += 1

    def give_back(self, caller: Caller) -> None:
        """The end of a conversation that has a place."""
        self._places[caller.name] -= 1
        self._places += Counter()  # drops callers without one


class Reservation:
    """The place that a WebSocket's conversation may take."""

    def __init__(self, admission: Admission, caller: Caller):
        self._admission, self.caller = admission, caller
        self._is_taken = False

    def take(self) -> None:
        """The conversation begins. Raises `RefusedError`."""
        if not self._is_taken:
            self._admission.take(self.caller)
            self._is_taken = True

    def leave(self) -> None:
        """The conversation is over."""
        if self._is_taken:
            self._is_taken = False
            self._admission.give_back(self.caller)
