"""All responses from `response.create`, or the end of a user's turn, to `response.done`.

The engine gives one answer at a time. A response of the conversation is announced when it is requested of the engine;
an out-of-band response is announced at once, and the engine answers it while no other response is open and the user is
silent.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from contract.controls import OutOfBandControl, Role
from contract.errors import ErrorCode
from contract.events import AnswerDone, AnswerStarted, Committed, Error, Event, Interrupted, SpeechStarted, Text
from frontend.realtime.engine_options import EngineOptions
from frontend.realtime.events import RealtimeError, error_event
from frontend.realtime.input_audio import InputAudio
from frontend.realtime.items import Item, Items
from frontend.realtime.output_message import AUDIO
from frontend.realtime.requests import ResponseRequest
from frontend.realtime.response import Response
from frontend.realtime.response_queue import ResponseQueue
from frontend.realtime.response_state import ResponseState
from frontend.realtime.session import Session
from frontend.session.server_clock import Pace, ServerClock
from frontend.tick import TickIn

CANCELLATION_FAILED = "Cancellation failed: no active response found"  # stock clients ignore errors that begin so
ENDING = (ResponseState.CANCELLING, ResponseState.DRAINING)


class Responses:
    """The open responses, at most one of the conversation and one out of band, and those that wait."""

    def __init__(
        self,
        clock: ServerClock,
        session: Session,
        options: EngineOptions,
        items: Items,
        audio: InputAudio,
        send: Callable[..., None],
        new: Callable[[ResponseRequest, str | None], Response],
    ):
        """Take `new`, which returns the response to a request and the id of the client's event."""
        self._clock, self._session, self._options, self._items, self._audio = clock, session, options, items, audio
        self._send, self._new = send, new
        self.current: Response | None = None  # the open response of the conversation
        self.latest: Response | None = None  # the same, also when it is done
        self.out_of_band: Response | None = None  # the out-of-band response that the engine answers
        self._queue = ResponseQueue()
        self._requested: Response | None = None  # the latest that a client has requested of the conversation
        self._cancels: deque[Response] = deque()  # responses whose `cancel` the engine has not applied
        self._cancelling: Response | None = None  # the response that the current tick has cancelled
        self._draining: list[Response] = []  # responses whose answer had ended before the current tick
        self._is_engine_busy = False  # the engine has refused an out-of-band answer, and nothing has ended since

    @property
    def _open_responses(self) -> list[Response]:
        return [response for response in (self.current, self.out_of_band) if response]

    @property
    def pace(self) -> Pace:
        """The kind of activity that is in progress."""
        if any(response.options.modality == AUDIO for response in self._open_responses):
            return Pace.SPEAKING
        if self._audio.user_speaks:
            return Pace.LISTENING
        return Pace.WRITING if self._open_responses else Pace.IDLE

    @property
    def is_answering(self) -> bool:
        """True while the engine is to begin or to end an answer."""
        return any(response.is_in_progress for response in self._open_responses)

    @property
    def own_options(self) -> dict[str, object]:
        """Options of a response that the engine has not begun to answer, over the session's."""
        response = self._requested
        return response.options.engine if response and response.is_in_progress and not response.has_begun else {}

    # The client's requests

    def create(self, request: ResponseRequest, event_id: str | None) -> None:
        """Create a response, now or when nothing is in its way. Raises `RealtimeError`."""
        self._queue.expect_space(request.is_out_of_band)
        response = self._new(request, event_id)
        if request.is_out_of_band:
            self._send(*response.created())
        elif not self._must_wait:
            self._expect_none_open()
        self._queue.add(response)
        self.start_next()

    def cancel(self, response_id: object) -> None:
        """Cancel the response of an id; None: the conversation's. Raises `RealtimeError`."""
        response = self._find(response_id)
        if response is None:
            raise RealtimeError(CANCELLATION_FAILED, ErrorCode.NO_ACTIVE_RESPONSE, "response_id")
        self._cancel(response)

    def cancel_audible(self) -> bool:
        """Cancel the open responses and the one that waits; return whether it was another than the current one."""
        has_other = self._queue.first is not None or self.out_of_band is not None
        for response in (self._queue.first, *self._open_responses):
            if response:
                self._cancel(response)
        return has_other

    def cancel_answer_of(self, item: Item) -> bool:
        """Cancel the response that streams to an item; return whether that response is open."""
        if self.current is None or self.current.item is not item:
            return False
        self._cancel(self.current)
        return True

    # The engine's ticks

    def begin_tick(self, tick: TickIn, pcm: bytes) -> None:
        """Start with the answer to a tick: its audio is the last of the answers that have ended."""
        self._cancelling = self._cancels.popleft() if tick.controls.cancel and self._cancels else None
        self._draining = [each for each in self._open_responses if each.state is ResponseState.DRAINING]
        for response in self._draining:
            self._send(*response.add_audio(pcm))
        self._close()

    def add_audio(self, pcm: bytes) -> None:
        """Append a tick's audio to the answers that had not ended before the tick."""
        for response in self._open_responses:
            if response not in self._draining:
                self._send(*response.add_audio(pcm))
        self._close()

    def note(self, event: Event) -> None:
        """Follow an event of the engine."""
        match event:
            case Committed(audio_start_ms=int()):
                if self._options.creates_responses and self.current is None:
                    self._open(self._unrequested())
            case AnswerStarted():
                self._begin(event)
            case Text():
                if response := self._response_of(event.out_of_band):
                    self._send(*response.add_text(event.text))
            case AnswerDone():
                response = self._response_of(event.out_of_band)
                if response and response.is_in_progress:
                    response.answer_done(event)
            case Interrupted():
                if response := self._response_of(event.out_of_band):
                    self._send(*response.interrupted(event))
            case Error():
                self._note_error(event)
        is_busy = getattr(event, "out_of_band", False) or isinstance(event, (SpeechStarted, Text))
        self._is_engine_busy = self._is_engine_busy and is_busy
        self._close()

    def is_audible(self, event: Event) -> bool:
        """Return whether an answer's event is about an answer that can be heard."""
        response = self._response_of(getattr(event, "out_of_band", False))
        return response is None or response.options.modality == AUDIO

    def fail(self, code: str, message: str) -> None:
        """End all responses: the engine has failed."""
        for response in (*self._open_responses, *self._queue.clear()):
            self._send(*response.fail(code, message))
        self._close()

    def start_next(self) -> None:
        """Start the waiting responses that may start."""
        while not self.current and (cancelled := self._queue.take_cancelled()):
            self._send(*cancelled.created(), *cancelled.cancelled())
        while next_response := self._startable():
            self._start(next_response)

    def _start(self, response: Response) -> None:
        """Request the answer of the engine; refuse the response if another one is active."""
        self._queue.remove(response)
        if response.request.is_out_of_band:
            self._request_out_of_band(response)
            return
        try:
            self._expect_none_open()
        except RealtimeError as error:
            self._send(error_event(error, response.event_id))
        else:
            self._request(response)

    def _startable(self) -> Response | None:
        """Return the waiting response that may start now: first the conversation's, then those out of band."""
        if self._must_wait:
            return None
        if self._queue.first:
            return self._queue.first
        if self.current or self._audio.is_open or self._is_engine_busy:
            return None
        return self._queue.first_out_of_band

    @property
    def _must_wait(self) -> bool:
        """True while a response is ending, a commit is not confirmed, or the engine answers out of band."""
        is_ending = self.current is not None and self.current.state in ENDING
        return is_ending or self._items.has_commit or self.out_of_band is not None

    def _expect_none_open(self) -> None:
        if self.current:
            message = f"expected no active response, got {self.current.id}: wait until it is done, or cancel it"
            raise RealtimeError(message, ErrorCode.ACTIVE_RESPONSE)

    def _request(self, response: Response) -> None:
        instructions = response.request.instructions
        if instructions.strip() and instructions != self._session.instructions:
            self._items.send_text(Item.of_text(Role.SYSTEM, instructions))
        self._requested = response
        self._open(response)
        self._options.follow(self.own_options)
        self._clock.request(respond=True)

    def _request_out_of_band(self, response: Response) -> None:
        response.move(ResponseState.REQUESTED)
        self.out_of_band = response
        self._clock.request(out_of_band=OutOfBandControl(response.request.instructions, response.options.engine))

    def _open(self, response: Response) -> None:
        """Open a response of the conversation: the engine is to answer."""
        response.move(ResponseState.REQUESTED)
        self.current = self.latest = response
        self._send(*response.created())

    def _unrequested(self) -> Response:
        """Return a response to a user's turn, which the engine answers with its own options."""
        return self._new(ResponseRequest.model_construct(output_modalities=self._options.modality), None)

    def _begin(self, event: AnswerStarted) -> None:
        if event.out_of_band:
            if self.out_of_band:
                self._send(*self.out_of_band.begin(event.turn, None))
            return
        if self.current is None:
            self._open(self._unrequested())
        assert self.current is not None
        self._send(*self.current.begin(event.turn, self._items.last))
        assert self.current.item is not None
        self._items.append(self.current.item)

    def _note_error(self, event: Error) -> None:
        response = self._response_of(event.out_of_band)
        if response is None or not response.is_in_progress:
            return
        match event.code:
            case ErrorCode.ANSWER_ACTIVE if not event.out_of_band:
                return  # the user's turn ended first: its answer is the response that was requested
            case ErrorCode.ANSWER_ACTIVE if response.state is ResponseState.REQUESTED:
                response.move(ResponseState.QUEUED)
                self._queue.put_back(response)
                self.out_of_band, self._is_engine_busy = None, True
            case ErrorCode.ANSWER_ACTIVE:
                self._send(*response.cancelled())
            case ErrorCode.NOTHING_TO_CANCEL if response is self._cancelling and not response.has_begun:
                self._send(*response.cancelled())  # the answer would have begun when the user had stopped
            case ErrorCode.TURN_TOO_LONG if event.what is None:
                self._send(*response.fail(event.code.value, event.message))
            case _ if event.out_of_band:
                self._send(*response.fail(event.code.value, event.message))

    def _response_of(self, is_out_of_band: bool) -> Response | None:
        return self.out_of_band if is_out_of_band else self.current

    def _find(self, response_id: object) -> Response | None:
        """Return the response that a client can cancel by an id; None: the conversation's."""
        if response_id is None:
            found = self._queue.first or self.current
        else:
            known = (each for each in self._open_responses if each.id == response_id)
            found = next(known, None) or self._queue.find_out_of_band(response_id)
        return found if found and found.state is not ResponseState.DRAINING else None

    def _cancel(self, response: Response) -> None:
        match response.state:
            case ResponseState.QUEUED if response.request.is_out_of_band:
                self._queue.remove(response)
                self._send(*response.cancelled())
            case ResponseState.QUEUED:
                response.move(ResponseState.CANCELLING)
                self.start_next()
            case ResponseState.REQUESTED | ResponseState.STREAMING:
                response.move(ResponseState.CANCELLING)  # a second `cancel` could meet the next answer
                if response.request.is_out_of_band:
                    self._clock.request(out_of_band=OutOfBandControl(cancel=True))
                else:
                    self._cancels.append(response)
                    self._clock.request(cancel=True)

    def _close(self) -> None:
        """Close the responses that are done."""
        if self.current and self.current.state is ResponseState.DONE:
            self.current = None
        if self.out_of_band and self.out_of_band.state is ResponseState.DONE:
            self.out_of_band = None
