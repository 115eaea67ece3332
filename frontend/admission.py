"""Admission of conversations: a place in the engine is taken by a conversation's first audio, not by its WebSocket."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus

from config.bridge import BridgeSettings
from contract.errors import ErrorCode
from frontend import metrics
from frontend.access import Caller, RefusedError

RETRY_AFTER_S = 5


class Admission:
    """Counts WebSockets and conversations, and refuses those beyond the limits: Triton would queue them silently."""

    def __init__(self, settings: BridgeSettings, slots: Callable[[], int] = lambda: 0):
        """Begin without conversations; `slots` returns the engine's capacity, or 0 if only the engine can refuse."""
        self._settings, self._slots = settings, slots
        self.sockets = 0
        self._conversations: Counter[str] = Counter()  # conversations of each caller
        self.is_draining = False
        metrics.CONVERSATIONS.set_function(lambda: self.conversations)
        metrics.SOCKETS.set_function(lambda: self.sockets)

    @property
    def conversations(self) -> int:
        """Number of conversations with a place in the engine."""
        return self._conversations.total()

    def refusal(self, caller: Caller | None = None) -> RefusedError | None:
        """Return the reason if no conversation can begin now: none of any caller, or none of `caller`."""
        unavailable, slots = HTTPStatus.SERVICE_UNAVAILABLE, self._slots()
        max_own = self._settings.conversations_per_client
        if self.is_draining:
            message = "the server is about to end, try another"
            return RefusedError(unavailable, ErrorCode.DRAINING, message, RETRY_AFTER_S)
        if 0 < slots <= self.conversations:
            message = f"all {slots} slots hold a conversation (engine.slots), try again later"
            return RefusedError(unavailable, ErrorCode.FULL, message, RETRY_AFTER_S)
        if caller and 0 < max_own <= self._conversations[caller.name]:
            message = f"{max_own} conversations of yours are open (bridge.conversations_per_client), end one first"
            status = HTTPStatus.TOO_MANY_REQUESTS
            return RefusedError(status, ErrorCode.TOO_MANY_CONVERSATIONS, message, RETRY_AFTER_S)
        return None

    @contextmanager
    def socket(self, caller: Caller, resumes: bool = False) -> Iterator[Reservation]:
        """Count a WebSocket of a caller inside of the context. Raises `RefusedError`.

        `resumes`: its conversation has a place already.
        """
        if not resumes and (refusal := self.refusal(caller)):
            raise refusal
        if self.sockets >= self._settings.sockets:
            message = f"{self.sockets} WebSockets are open (bridge.sockets), try again later"
            raise RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, ErrorCode.TOO_MANY_SOCKETS, message, RETRY_AFTER_S)
        reservation = Reservation(self, caller)
        self.sockets += 1
        try:
            yield reservation
        finally:
            self.sockets -= 1
            reservation.leave()

    def take(self, caller: Caller) -> None:
        """Count a conversation of a caller. Raises `RefusedError`."""
        if refusal := self.refusal(caller):
            raise refusal
        self._conversations[caller.name] += 1

    def release(self, caller: Caller) -> None:
        """Count a conversation of a caller as ended."""
        self._conversations[caller.name] -= 1
        self._conversations += Counter()  # removes callers without a conversation


class Reservation:
    """The right of a WebSocket's conversation to a place in the engine."""

    def __init__(self, admission: Admission, caller: Caller):
        self._admission, self.caller = admission, caller
        self._is_taken = False

    def take(self) -> None:
        """Take the place, if it is not taken. Raises `RefusedError`."""
        if not self._is_taken:
            self._admission.take(self.caller)
            self._is_taken = True

    def leave(self) -> None:
        """Release the place."""
        if self._is_taken:
            self._is_taken = False
            self._admission.release(self.caller)
