"""One conversation of the protocol, without a socket.

The client's events become controls of the engine's ticks; the engine's events and audio become events of the protocol.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from config import Settings
from contract.controls import Controls
from contract.errors import ErrorCode
from contract.events import (
    Committed,
    Error,
    Event,
    Forgotten,
    InputDropped,
    Interrupted,
    SpeechStarted,
    SpeechStopped,
    Truncated,
    TurnsDropped,
)
from frontend.realtime import requests
from frontend.realtime.engine_options import EngineOptions
from frontend.realtime.events import ClientEvent, ClientEventType, RealtimeError, error_event, new_id
from frontend.realtime.input_audio import InputAudio
from frontend.realtime.items import Commit, Item, Items, Truncation
from frontend.realtime.output_audio import OutputAudio
from frontend.realtime.response import Response
from frontend.realtime.responses import Responses
from frontend.realtime.session import Session
from frontend.realtime.validation import Model, validate
from frontend.session.player import Player
from frontend.session.server_clock import ServerClock
from frontend.tick import TickError, TickIn, TickOut

KEEP_ALIVES = 3  # ticks per idle timeout of the engine
SILENT_ERRORS = (
    ErrorCode.ANSWER_ACTIVE,  # the user's turn ended first: its answer is the response that was requested
    ErrorCode.NOTHING_TO_CANCEL,  # the answer had ended
    ErrorCode.NOTHING_TO_TRUNCATE,  # the answer has left the context
    ErrorCode.NOTHING_TO_FORGET,  # the item has left the context
)
"""Errors of the engine that the client does not receive: what the client has requested holds."""


class RealtimeConversation:
    """`send` receives the events for the client; `start` is called when the engine is needed for the first time."""

    def __init__(
        self,
        settings: Settings,
        voices: Sequence[str],
        model: str,
        expires_at: int,
        send: Callable[..., None],
        start: Callable[[], None],
        player: Player | None = None,
        now: Callable[[], float] = time.monotonic,
    ):
        """Create a conversation; `player` plays the audio of a call; `now`: current time in seconds."""
        self.session = Session(new_id("sess"), settings, voices, model, expires_at, is_call=player is not None)
        self.clock = ServerClock(settings.audio.tick_ms, settings.engine.idle_timeout_s / KEEP_ALIVES, now)
        self._send, self._start_engine, self._player = send, start, player
        self._has_started = False
        self._id = new_id("conv")
        self._options = EngineOptions(self.clock, self.session)
        self._items = Items(self.clock, send)
        self._audio = InputAudio(self.clock, self.session, self._options)
        self._responses = Responses(
            self.clock, self.session, self._options, self._items, self._audio, send, self._new_response
        )
        self._output = OutputAudio(player, self._responses, self._items, send)
        self._handlers: dict[ClientEventType, tuple[type[Model], Callable[..., None]]] = {
            ClientEventType.UPDATE_SESSION: (requests.UpdateSession, self._update_session),
            ClientEventType.COMMIT_AUDIO: (requests.NoFields, self._commit_audio),
            ClientEventType.CLEAR_AUDIO: (requests.NoFields, self._clear_audio),
            ClientEventType.CREATE_ITEM: (requests.CreateItem, self._create_item),
            ClientEventType.RETRIEVE_ITEM: (requests.RetrieveItem, self._retrieve_item),
            ClientEventType.TRUNCATE_ITEM: (requests.TruncateItem, self._truncate_item),
            ClientEventType.DELETE_ITEM: (requests.DeleteItem, self._delete_item),
            ClientEventType.CREATE_RESPONSE: (requests.CreateResponse, self._create_response),
            ClientEventType.CANCEL_RESPONSE: (requests.CancelResponse, self._cancel_response),
            ClientEventType.CLEAR_OUTPUT: (requests.NoFields, self._clear_output),
        }

    def open(self) -> None:
        """Send the first event."""
        self._audio.follow_session(is_responding=False)
        self._follow()
        self._send({"type": "session.created", "session": self.session.about})

    # The client's events

    async def receive(self, event: ClientEvent) -> None:
        """Handle a client's event. Raises `RealtimeError`, and `RefusedError` if the engine is full."""
        if event.kind is ClientEventType.APPEND_AUDIO:
            await self._append_encoded(validate(requests.AppendAudio, event.fields))
            return  # nothing that `_follow` sends has changed
        model, handle = self._handlers[event.kind]
        handle(validate(model, event.fields), event.event_id)
        self._follow()

    async def append_audio(self, pcm: bytes) -> None:
        """Add audio of the client, PCM16 at 16 kHz. Raises `RefusedError` if the engine is full."""
        self._start()
        await self.clock.append(pcm)

    def _update_session(self, wanted: requests.UpdateSession, _: str | None) -> None:
        before = self.session.instructions
        self.session.update(wanted.session, voice_is_fixed=self._has_started)
        self._audio.follow_session(is_responding=self._responses.current is not None)
        self._options.follow(self._responses.own_options)
        if self._has_started and self.session.instructions.strip() and self.session.instructions != before:
            self._items.send_text(Item.of_text(requests.Role.SYSTEM, self.session.instructions))
        self._send({"type": "session.updated", "session": self.session.about})

    async def _append_encoded(self, wanted: requests.AppendAudio) -> None:
        if self._player:
            raise RealtimeError("expected the audio of a call in its track", ErrorCode.INVALID_EVENT)
        await self.append_audio(self._audio.decode(wanted.audio))

    def _commit_audio(self, _: requests.NoFields, event_id: str | None) -> None:
        self._audio.expect_audio()
        self._audio.expect_space()
        self._start()
        self._items.expect_audio(Commit(event_id))
        self._audio.commit()

    def _clear_audio(self, *_: object) -> None:
        self._audio.clear(self._has_started)
        self._send({"type": "input_audio_buffer.cleared"})

    def _create_item(self, wanted: requests.CreateItem, _: str | None) -> None:
        new = wanted.item
        self._items.expect_new(new, wanted.previous_item_id)
        if new.content.audio:
            self._audio.expect_space()
        pcm = self._audio.decode_whole(new.content.audio)
        item = Item(new.id or new_id("item"), new.role.value, new.content.parts)
        previous = self._items.append(item)
        self._start()
        if new.content.audio:
            self._send_audio(item, pcm)
        else:
            self._items.send_text(item)
        for kind in ("conversation.item.added", "conversation.item.done"):
            self._send({"type": kind, "previous_item_id": previous, "item": item.about()})

    def _send_audio(self, item: Item, pcm: bytes) -> None:
        """Add a turn of audio to the history, without an answer."""
        self._items.expect_audio(item)
        manual = {"detection": "manual", "create_response": False}
        first = Controls(turn=manual, listen=True, message=item.text)
        self.clock.send_whole(pcm, first, Controls(commit=True))
        self._options.restore(*manual)

    def _retrieve_item(self, wanted: requests.RetrieveItem, _: str | None) -> None:
        item = self._items.get(wanted.item_id, ErrorCode.UNKNOWN_ITEM_TO_RETRIEVE)
        self._send({"type": "conversation.item.retrieved", "item": item.about()})

    def _truncate_item(self, wanted: requests.TruncateItem, _: str | None) -> None:
        item = self._items.get(wanted.item_id, ErrorCode.UNKNOWN_ITEM_TO_TRUNCATE)
        if not item.is_spoken:
            raise RealtimeError("item_id: expected an item that the assistant has spoken", param="item_id")
        if wanted.content_index >= max(1, len(item.content)):
            message = f"content_index: expected 0, the item's only part, got {wanted.content_index}"
            raise RealtimeError(message, param="content_index")
        self._responses.cancel_answer_of(item)
        self._items.truncate(Truncation(item, wanted.content_index, wanted.audio_end_ms))

    def _delete_item(self, wanted: requests.DeleteItem, _: str | None) -> None:
        item = self._items.get(wanted.item_id, ErrorCode.UNKNOWN_ITEM_TO_DELETE)
        self._items.delete(item, is_streaming=self._responses.cancel_answer_of(item))

    def _create_response(self, wanted: requests.CreateResponse, event_id: str | None) -> None:
        self._start()
        self._responses.create(wanted.response, event_id)

    def _cancel_response(self, wanted: requests.CancelResponse, _: str | None) -> None:
        self._responses.cancel(wanted.response_id)

    def _clear_output(self, *_: object) -> None:
        self._output.clear()

    def _start(self) -> None:
        """Start the conversation in the engine, once. Raises `RefusedError` if the engine is full."""
        if not self._has_started:
            self._start_engine()
            self._has_started = True
            self._options.start()

    def _new_response(self, request: requests.ResponseRequest, event_id: str | None) -> Response:
        play = self._player.play if self._player else None
        return Response(request, self.session, self._id, play, event_id)

    # The engine's ticks

    def deliver(self, answer: TickOut, tick: TickIn) -> None:
        """Send the answer to a tick to the client, in the protocol's events."""
        self._options.apply(tick)
        self._items.begin_tick(tick.controls)
        self._audio.begin_tick(tick)
        self._responses.begin_tick(tick, answer.pcm)
        for event in answer.events:
            self._note(event)
        self._responses.add_audio(answer.pcm)
        if self._responses.current is None:
            self._items.release()
        self._responses.start_next()
        self._follow()

    def fail(self, error: TickError) -> None:
        """End all responses: the engine has failed a tick."""
        param = None
        match error.code:
            case ErrorCode.PROMPT_TOO_LONG:
                code, kind, param = ErrorCode.STRING_ABOVE_MAX_LENGTH, "invalid_request_error", "session.instructions"
            case ErrorCode.FULL:
                code, kind = ErrorCode.FULL, "server_error"
            case _:
                code, kind = ErrorCode.SERVER_ERROR, "server_error"
        if self._player:
            self._player.clear()
        self._responses.fail(code, str(error))
        self._send(error_event(RealtimeError(str(error), code, param), kind=kind))

    def _note(self, event: Event) -> None:
        match event:
            case SpeechStarted():
                self._speech_started(event)
            case SpeechStopped():
                self._send(*self._audio.speech_stopped(event))
            case InputDropped():
                self._audio.drop_turn()
            case Committed():
                self._confirm(event)
            case Truncated():
                self._items.truncated(event)
            case Forgotten():
                self._items.forgotten(event, is_responding=False)
            case TurnsDropped():
                self._items.evict(event)
            case Error():
                self._note_error(event)
        is_audible = self._responses.is_audible(event)
        self._responses.note(event)
        if isinstance(event, Interrupted) and is_audible:
            self._output.stop()

    def _speech_started(self, event: SpeechStarted) -> None:
        responses = self._responses
        if self.session.turn_options().get("interrupt") and not responses.is_answering:
            self._output.stop()  # the engine has ended the answer, the last of the audio is still played
        self._send(*self._audio.speech_started(event, is_responding=responses.current is not None))

    def _confirm(self, event: Committed) -> None:
        """Report a turn that the user has spoken; an added item is announced already."""
        if self._items.confirm(event):
            return
        self._audio.drop_turn()
        item = Item(self._audio.take_item_id(), "user", [{"type": "input_audio", "transcript": None}])
        self._items.hold(item, event.turn)
        previous = self._items.append(item)
        about = item.about()
        self._send(
            {"type": "input_audio_buffer.committed", "item_id": item.id, "previous_item_id": previous},
            {"type": "conversation.item.added", "previous_item_id": previous, "item": about},
            {"type": "conversation.item.done", "previous_item_id": previous, "item": about},
        )

    def _note_error(self, event: Error) -> None:
        """Send an error of the engine to the client, unless what the client has requested holds."""
        match event.code:
            case ErrorCode.NOTHING_TO_TRUNCATE:
                self._items.truncated(event)
            case ErrorCode.NOTHING_TO_FORGET:
                self._items.forgotten(event, is_responding=self._responses.current is not None)
            case ErrorCode.TURN_TOO_LONG if event.what:
                self._items.refuse_text()
            case ErrorCode.NOTHING_TO_COMMIT:
                if commit := self._items.refuse_audio():
                    error = RealtimeError(event.message, ErrorCode.INPUT_BUFFER_EMPTY)
                    self._send(error_event(error, commit.event_id))
                return
        if event.code not in SILENT_ERRORS and not event.out_of_band:
            self._send(error_event(RealtimeError(event.message, event.code.value)))

    def _follow(self) -> None:
        """Send changed options to the engine, and set what the clock follows."""
        self._options.follow(self._responses.own_options)
        self.clock.follow(self._responses.pace, self._audio.holds)
