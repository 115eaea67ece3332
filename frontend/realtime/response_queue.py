"""The responses that wait until the engine can answer."""

from __future__ import annotations

from collections import deque

from contract.errors import ErrorCode
from frontend.realtime.events import RealtimeError
from frontend.realtime.response import Response
from frontend.realtime.response_state import ResponseState

MAX_OF_CONVERSATION, MAX_OUT_OF_BAND = 1, 8


class ResponseQueue:
    """At most one response of the conversation waits; those before it were cancelled and are not announced yet."""

    def __init__(self) -> None:
        self._of_conversation: deque[Response] = deque()
        self._out_of_band: deque[Response] = deque()

    @property
    def first(self) -> Response | None:
        """The conversation's response that waits."""
        return next((each for each in self._of_conversation if each.state is ResponseState.QUEUED), None)

    @property
    def first_out_of_band(self) -> Response | None:
        """The out-of-band response that waits longest."""
        return self._out_of_band[0] if self._out_of_band else None

    def expect_space(self, is_out_of_band: bool) -> None:
        """Raise `RealtimeError` if no more response may wait."""
        waiting = len(self._out_of_band) if is_out_of_band else int(self.first is not None)
        if waiting >= (MAX_OUT_OF_BAND if is_out_of_band else MAX_OF_CONVERSATION):
            message = f"expected response.create after response.done or response.cancel: {waiting} responses wait"
            raise RealtimeError(message, ErrorCode.ACTIVE_RESPONSE)

    def add(self, response: Response) -> None:
        """Append a response."""
        self._queue_of(response).append(response)

    def put_back(self, response: Response) -> None:
        """Add a response that the engine has refused, before all others."""
        self._queue_of(response).appendleft(response)

    def remove(self, response: Response) -> None:
        """Remove a response that starts or is cancelled."""
        self._queue_of(response).remove(response)

    def find_out_of_band(self, response_id: object) -> Response | None:
        """Return the out-of-band response of an id."""
        return next((each for each in self._out_of_band if each.id == response_id), None)

    def take_cancelled(self) -> Response | None:
        """Remove and return the oldest response of the conversation, if it was cancelled."""
        is_cancelled = self._of_conversation and self._of_conversation[0].state is ResponseState.CANCELLING
        return self._of_conversation.popleft() if is_cancelled else None

    def clear(self) -> list[Response]:
        """Remove all responses; return those that the client knows of."""
        announced = list(self._out_of_band)
        self._out_of_band.clear()
        self._of_conversation.clear()
        return announced

    def _queue_of(self, response: Response) -> deque[Response]:
        return self._out_of_band if response.request.is_out_of_band else self._of_conversation
