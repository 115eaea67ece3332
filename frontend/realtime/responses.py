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
from frontend.realtime.clock import Clock, Pace
from frontend.realtime.engine_options import EngineOptions
from frontend.realtime.events import RealtimeError, error_event
from frontend.realtime.input_audio import InputAudio
from frontend.realtime.items import Item, Items
from frontend.realtime.output_message import AUDIO
from frontend.realtime.requests import ResponseRequest
from frontend.realtime.response import Response
from frontend.realtime.response_state import ResponseState
from frontend.realtime.session import Session
from frontend.tick import TickIn

MAX_QUEUED_OUT_OF_BAND = 8
CANCELLATION_FAILED = "Cancellation failed: no active response found"  # stock clients ignore errors that begin so
ENDING = (ResponseState.CANCELLING, ResponseState.DRAINING)


class Responses:
    """The open responses, at most one of the conversation and one out of band, and those that wait."""

    def __init__(
        self,
        clock: Clock,
        session: Session,
        options: EngineOptions,
        items: Items,
        audio: InputAudio,
        send: Callable[..., None],
        new: Callable[[ResponseRequest, str | None], Response],
    ):
        """`new` makes a response of a request and the id of the client's event."""
        self._clock, self._session, self._options, self._items, self._audio = clock, session, options, items, audio
        self._send, self._new = send, new
        self.current: Response | None = None  # the open response of the conversation
        self.latest: Response | None = None  # the same, also when it is done
        self.out_of_band: Response | None = None  # the out-of-band response that the engine answers
        self._queue: deque[Response] = deque()  # of the conversation: at most one waits, others were cancelled
        self._out_of_band_queue: deque[Response] = deque()
        self._requested: Response | None = None  # the latest that a client has requested of the conversation
        self._cancels: deque[Response] = deque()  # responses whose `cancel` the engine has not applied
        self._cancelling: Response | None = None  # the response that the current tick has cancelled
        self._is_engine_busy = False  # the engine has refused an out-of-band answer, and nothing has ended since

    @property
    def pace(self) -> Pace:
        """What is in progress."""
        open_responses = [response for response in (self.current, self.out_of_band) if response]
        if any(response.options.modality == AUDIO for response in open_responses):
            return Pace.SPEAKING
        if self._audio.user_speaks:
            return Pace.LISTENING
        return Pace.WRITING if open_responses else Pace.IDLE

    @property
    def is_answering(self) -> bool:
        """True while the engine is to begin or to end an answer."""
        return any(response and response.is_in_progress for response in (self.current, self.out_of_band))

    @property
    def own_options(self) -> dict[str, object]:
        """Options of a response that the engine has not begun to answer, over the session's."""
        response = self._requested
        waits = response is not None and response.is_in_progress and not response.has_begun
        return response.options.engine if response and waits else {}

    # The client's requests

    def create(self, request: ResponseRequest, event_id: str | None) -> None:
        """Create a response, now or when nothing is in its way. Raises `RealtimeError`."""
        queue = self._out_of_band_queue if request.is_out_of_band else self._queue
        waiting = [response for response in queue if response.state is ResponseState.QUEUED]
        if len(waiting) >= (MAX_QUEUED_OUT_OF_BAND if request.is_out_of_band else 1):
            message = f"expected a request after response.done or response.cancel: {len(waiting)} responses wait"
            raise RealtimeError(message, ErrorCode.ACTIVE_RESPONSE)
        if not request.is_out_of_band and not self._must_wait:
            self._expect_none_open()
        response = self._new(request, event_id)
        queue.append(response)
        if request.is_out_of_band:
            self._send(*response.created())
        self.start_next()

    def cancel(self, response_id: object) -> None:
        """Cancel the response of an id; None: the conversation's. Raises `RealtimeError`."""
        response = self._find(response_id)
        if response is None:
            raise RealtimeError(CANCELLATION_FAILED, ErrorCode.NO_ACTIVE_RESPONSE, "response_id")
        self._cancel(response)

    def cancel_audible(self) -> bool:
        """Cancel the open responses and the one that waits; return whether it was another than the current one."""
        others = [each for each in self._queue if each.state is ResponseState.QUEUED]
        others += [self.out_of_band] if self.out_of_band else []
        for response in (*others, *([self.current] if self.current else [])):
            self._cancel(response)
        return bool(others)

    def cancel_answer_of(self, item: Item) -> bool:
        """Cancel the response that streams to an item; return whether that response is open."""
        if self.current is None or self.current.item is not item:
            return False
        self._cancel(self.current)
        return True

    # The engine's ticks

    def begin_tick(self, tick: TickIn, pcm: bytes) -> None:
        """Begin with the answer to a tick: it has the last audio of the answers that have ended."""
        self._cancelling = self._cancels.popleft() if tick.controls.cancel and self._cancels else None
        for response in (self.current, self.out_of_band):
            if response and response.state is ResponseState.DRAINING:
                self._send(*response.add_audio(pcm))
        self._close()

    def add_audio(self, pcm: bytes) -> None:
        """Append a tick's audio to the answers that were not `DRAINING` before its events."""
        for response in (self.current, self.out_of_band):
            if response:
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
        for response in (self.current, self.out_of_band, *self._out_of_band_queue):
            if response:
                self._send(*response.fail(code, message))
        self._out_of_band_queue.clear()
        self._queue.clear()
        self._close()

    def start_next(self) -> None:
        """Start the waiting responses that may start."""
        while self._queue and self._queue[0].state is ResponseState.CANCELLING and not self.current:
            response = self._queue.popleft()
            self._send(*response.created(), *response.cancelled())
        while next_response := self._startable():
            self._start(next_response)

    def _start(self, response: Response) -> None:
        """Request the answer of the engine; refuse the response if another one is active."""
        if response.request.is_out_of_band:
            self._out_of_band_queue.remove(response)
            self._request_out_of_band(response)
            return
        self._queue.remove(response)
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
        waiting = (response for response in self._queue if response.state is ResponseState.QUEUED)
        if response := next(waiting, None):
            return response
        if self.current or self._audio.is_open or self._is_engine_busy or not self._out_of_band_queue:
            return None
        return self._out_of_band_queue[0]

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
        control = OutOfBandControl(response.request.instructions, response.options.engine)
        self._clock.request(out_of_band=control)

    def _open(self, response: Response) -> None:
        """Announce a response of the conversation: the engine is to answer."""
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
                self._out_of_band_queue.appendleft(response)
                self.out_of_band, self._is_engine_busy = None, True
            case ErrorCode.ANSWER_ACTIVE:
                self._send(*response.cancelled())
            case ErrorCode.NOTHING_TO_CANCEL if response is self._cancelling and not response.has_begun:
                self._send(*response.cancelled())  # it would have begun when the user had stopped
            case ErrorCode.TURN_TOO_LONG if event.what is None:
                self._send(*response.fail(event.code.value, event.message))
            case _ if event.out_of_band:
                self._send(*response.fail(event.code.value, event.message))

    def _response_of(self, is_out_of_band: bool) -> Response | None:
        return self.out_of_band if is_out_of_band else self.current

    def _find(self, response_id: object) -> Response | None:
        """Return the response that a client can cancel by an id; None: the conversation's."""
        if response_id is None:
            found = [each for each in self._queue if each.state is ResponseState.QUEUED]
            found += [self.current] if self.current else []
        else:
            known = (self.out_of_band, *self._out_of_band_queue, self.current)
            found = [each for each in known if each and each.id == response_id]
        return next((each for each in found if each.state is not ResponseState.DRAINING), None)

    def _cancel(self, response: Response) -> None:
        match response.state:
            case ResponseState.QUEUED if response.request.is_out_of_band:
                self._out_of_band_queue.remove(response)
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
