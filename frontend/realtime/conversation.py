"""One conversation of the protocol, without a socket: the client's events become controls of the engine's ticks, the
engine's events and sound the protocol's.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from config import Settings
from contract.errors import ErrorCode
from frontend.audio.formats import AudioDecoder, AudioError
from frontend.floor import Floor
from frontend.realtime.clock import MAX_HELD_S, Clock
from frontend.realtime.events import ClientEvent, Event, RealtimeError, error_event, new_id
from frontend.realtime.input_buffer import InputBuffer
from frontend.realtime.items import Item, Items
from frontend.realtime.out_of_band import OutOfBand, Wanted
from frontend.realtime.response import Request, Response, State, parse_request
from frontend.realtime.session import Session
from frontend.realtime.unconfirmed import Commit, Unconfirmed
from frontend.session.player import Player
from frontend.tick import TickError, TickOut


class Truncation(NamedTuple):
    """What a client has heard of an answer."""

    item: Item
    content_index: int
    heard_ms: int

    @property
    def event(self) -> Event:
        """That it is done."""
        return {
            "type": "conversation.item.truncated",
            "item_id": self.item.id,
            "content_index": self.content_index,
            "audio_end_ms": self.heard_ms,
        }


class Waiting(NamedTuple):
    """A response that is asked for, and the id of the event that asked."""

    event_id: str | None
    wanted: Request


class RealtimeConversation:
    """What is said to the client goes to `send`; `start` is called when the engine is needed for the first time."""

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
        """`now`: current time in seconds."""
        self.session = Session(new_id("sess"), settings, voices, model, expires_at, is_call=player is not None)
        self.clock = Clock(settings.audio.tick_ms, settings.engine.idle_timeout_s / 3, now)
        self._send = send
        self._start_engine = start
        self._player = player
        self._is_started = False
        self._id = new_id("conv")
        self._input = InputBuffer(self.clock, self.session.format("input"))
        self._items = Items()
        self._unconfirmed = Unconfirmed()
        self._to_forget: list[tuple[int, str]] = []  # turns and parts that are being answered, and leave after it
        self._engine_options: dict[str, Any] = {}  # the engine's options of turns as of the latest tick
        self._response: Response | None = None
        self._speech_item = ""  # the id that the user's turn will have
        self._spoken_until_ms = 0  # where the turn before ended, of which no next one holds anything
        self._next_response: Waiting | None = None  # asked for, and waits for a commit or a cancellation
        self._dropped: deque[Request] = deque()  # that were cancelled before they could begin, and not told of yet
        self._truncations: deque[Truncation] = deque()  # that the engine has not done yet
        self._to_delete: list[Item] = []  # that are being spoken, and are deleted after it
        self._turns = Floor(creates_responses=True)
        self._out_of_band = OutOfBand(self.clock, send, self._fall_silent)

    def open(self) -> None:
        """The first event."""
        self.clock.holds = self.session.detection is None
        self._send({"type": "session.created", "session": self.session.about})

    # From the client

    async def take(self, event: ClientEvent) -> None:
        """Does what a client's event asks. Raises `RealtimeError`."""
        match event.kind:
            case "session.update":
                self._update_session(event)
            case "input_audio_buffer.append" if self._player:
                raise RealtimeError("a call's sound comes in its track", code="invalid_event")
            case "input_audio_buffer.append":
                await self.hear(self._input.feed(event.fields.get("audio")))
            case "input_audio_buffer.commit":
                self._commit(event)
            case "input_audio_buffer.clear":
                self._clear_input()
            case "conversation.item.create":
                self._create_item(event)
            case "conversation.item.retrieve":
                item = self._items.get(event.text("item_id"), "item_retrieve_invalid_item_id")
                self._send({"type": "conversation.item.retrieved", "item": item.about()})
            case "conversation.item.truncate":
                self._truncate_item(event)
            case "conversation.item.delete":
                self._delete_item(event)
            case "response.create":
                self._create_response(event)
            case "response.cancel":
                self._cancel_response(event)
            case "output_audio_buffer.clear" if self._player:
                self._clear_output()
            case _:
                raise RealtimeError(f"{event.kind} belongs to WebRTC, here the client plays", code="invalid_event")

    async def hear(self, pcm: bytes) -> None:
        """The client's sound, PCM16 at 16 kHz. Raises `RefusedError` where the engine has no place for it."""
        self._start()
        await self.clock.append(pcm)

    def _update_session(self, event: ClientEvent) -> None:
        session, before = self.session, self.session.turn_options()
        instructions = session.instructions
        session.update(event.mapping("session"), voice_is_fixed=self._is_started)
        self._input.use(session.format("input"))
        is_kept = self._input.keeps_turn or (self._turns.user_speaks and not self._is_responding)
        self._input.keeps_turn = is_kept and session.detection is None
        if self._is_started:
            if session.turn_options() != before:
                self.clock.ask(turn=json.dumps(session.turn_options()))
            if session.instructions.strip() and session.instructions != instructions:
                self._add_to_history(Item.of_text("system", session.instructions))
        if not self._input.keeps_turn:  # else not before the engine knows: what is being said has no hole
            self.clock.holds = session.detection is None
        self._send({"type": "session.updated", "session": session.about})

    def _commit(self, event: ClientEvent) -> None:
        self._input.expect_sound(self._turns.user_speaks)
        self._expect_room()
        self._start()
        self._unconfirmed.add_sound(Commit(event.event_id))
        self._input.commit(self.session.turn_options())

    def _expect_room(self) -> None:
        """Raises `RealtimeError` where a minute of turns has not gone to the engine yet."""
        if self.clock.planned_ms > MAX_HELD_S * 1000:
            planned_ms, max_ms = self.clock.planned_ms, MAX_HELD_S * 1000
            message = f"{planned_ms:.0f} ms of committed sound wait, expected at most {max_ms:.0f}"
            raise RealtimeError(message, code="input_audio_buffer_full")

    def _clear_input(self) -> None:
        """Forgets the sound that is no item yet; the engine has what was detected as speech."""
        is_heard = self._input.keeps_turn or (self._turns.user_speaks and not self.clock.holds)
        self._input.clear()
        if is_heard:  # a change of the detection forgets the open turn
            other = "manual" if self.session.detection else "server_vad"
            self.clock.ask(turn=json.dumps({"detection": other}))
            self.clock.ask(turn=json.dumps(self.session.turn_options()))
        self._send({"type": "input_audio_buffer.cleared"})

    def _create_item(self, event: ClientEvent) -> None:
        item, sounds = self._items.parse(event)
        if sounds:
            self._expect_room()
        microphone = AudioDecoder(self.session.format("input"), at_once=False)
        try:
            pcm = b"".join([*(microphone.feed(sound) for sound in sounds), microphone.end()])
        except AudioError as error:
            raise RealtimeError(str(error), param="audio") from None
        previous = self._items.add(item)
        self._start()
        if sounds:
            self._add_sound(item, pcm)
        else:
            self._add_to_history(item)
        about = item.about()
        for kind in ("added", "done"):
            self._send({"type": f"conversation.item.{kind}", "previous_item_id": previous, "item": about})

    def _add_to_history(self, item: Item) -> None:
        self._unconfirmed.add_text(item)
        self.clock.ask(items=json.dumps([{"role": item.role, "text": item.text}]))

    def _add_sound(self, item: Item, pcm: bytes) -> None:
        """A turn whose sound the client gives whole: it is heard by itself, and asks for no answer."""
        self._unconfirmed.add_sound(item)
        manual = {"detection": "manual", "create_response": False}
        text = {"message": item.text} if item.text else {}
        self.clock.plan(pcm, {"turn": json.dumps(manual), "listen": True, **text}, {"commit": True})
        self.clock.ask(turn=json.dumps(self.session.turn_options()))

    def _truncate_item(self, event: ClientEvent) -> None:
        item = self._items.get(event.text("item_id"), "item_truncate_invalid_item_id")
        content_index, heard_ms = event.whole("content_index"), event.whole("audio_end_ms")
        if not item.is_spoken:
            raise RealtimeError("only what the assistant has spoken can be truncated", param="item_id")
        if content_index >= max(1, len(item.content)):
            raise RealtimeError(f"content_index is {content_index}, the item has one part", param="content_index")
        self._cancel_answer(item)
        self._truncate(item, content_index, heard_ms)

    def _truncate(self, item: Item, content_index: int, heard_ms: int) -> None:
        truncation = Truncation(item, content_index, heard_ms)
        if item.turn is None:  # it has left the engine's context
            self._send(truncation.event)
            return
        self._truncations.append(truncation)
        self.clock.ask(truncate=json.dumps({"turn": item.turn, "heard_ms": heard_ms}))

    def _delete_item(self, event: ClientEvent) -> None:
        item = self._items.get(event.text("item_id"), "item_delete_invalid_item_id")
        self._cancel_answer(item)
        if item in self._to_delete:
            raise RealtimeError(f"the item {item.id} is deleted already", "item_delete_invalid_item_id", "item_id")
        if self._is_responding and self._response and self._response.item is item:
            self._to_delete.append(item)  # its ladder comes first
        else:
            self._delete(item)

    def _delete(self, item: Item) -> None:
        if item.turn is not None:
            self._forget(item)
        elif item in self._unconfirmed:
            self._unconfirmed.delete(item)
        self._items.remove(item)
        self._send({"type": "conversation.item.deleted", "item_id": item.id})

    def _forget(self, item: Item) -> None:
        self.clock.ask(forget=json.dumps({"turn": item.turn, "part": item.part}))

    def _create_response(self, event: ClientEvent) -> None:
        wanted = parse_request(event.mapping("response"))
        if wanted.is_out_of_band:
            self._start()
            own = self.session.answer_options(wanted.modality, wanted.max_tokens)
            self._out_of_band.ask(Wanted(self._new_response(wanted), wanted.instructions, own))
            self._begin_out_of_band()
            self._follow()
            return
        if self._next_response:
            message = "a response is asked for already: wait until it is done, or cancel it"
            raise RealtimeError(message, code="conversation_already_has_active_response")
        if self._must_wait:
            self._next_response = Waiting(event.event_id, wanted)
        else:
            self._ask_for(wanted)

    def _ask_for(self, wanted: Request) -> None:
        if self._response and self._response.state is not State.DONE:
            raise RealtimeError(
                f"the conversation has an active response, {self._response.id}: wait until it is done, or cancel it",
                code="conversation_already_has_active_response",
            )
        self._start()
        if wanted.instructions.strip() and wanted.instructions != self.session.instructions:
            self._add_to_history(Item.of_text("system", wanted.instructions))
        options = self.session.turn_options()
        own = self.session.answer_options(wanted.modality, wanted.max_tokens)
        if own.items() <= options.items():
            self.clock.ask(respond=True)
        else:
            self.clock.ask(turn=json.dumps(own), respond=True)
            self.clock.ask(turn=json.dumps(options))
        self._begin_response(wanted)

    def _cancel_response(self, event: ClientEvent) -> None:
        response, wanted = self._response, event.fields.get("response_id")
        if self._out_of_band.cancel(wanted):
            return
        if self._next_response and wanted is None:
            self._drop_next_response()
            return
        if response is None or not response.is_due or wanted not in (None, response.id):
            raise RealtimeError(
                "Cancellation failed: no active response found", code="response_cancel_not_active", param="response_id"
            )
        self._cancel(response)

    def _cancel(self, response: Response) -> None:
        if not response.is_cancelled:  # a second `cancel` could meet the next answer
            response.is_cancelled = True
            self.clock.ask(cancel=True)

    def _drop_next_response(self) -> None:
        """The response that waits is done before it has begun; it is told of when the one before it is done."""
        if self._next_response:
            self._dropped.append(self._next_response.wanted)
            self._next_response = None
        self._tell_dropped()

    def _tell_dropped(self) -> None:
        while self._dropped and not self._is_responding:
            response = self._new_response(self._dropped.popleft())
            self._send(*response.created(), *response.stop("client_cancelled"))

    def _clear_output(self) -> None:
        ends_another = self._out_of_band.cancel(self._out_of_band.response_id) or self._next_response is not None
        self._drop_next_response()
        if self._response and self._response.is_due:
            self._cancel(self._response)
        if not self._fall_silent() and not ends_another:
            if self._response is None:
                raise RealtimeError("no response has been played", code="output_audio_buffer_empty")
            self._send({"type": "output_audio_buffer.cleared", "response_id": self._response.id})

    def _fall_silent(self) -> bool:
        """Nothing more is heard of an answer; whether anything was to be heard.

        Where the bridge plays, it knows to the frame what was heard, and that is what the history keeps.

        The engine takes an answer for heard as far as it has given it.
        """
        cut = self._player.clear() if self._player else None
        if cut and self._response and self._response.id == cut.response_id and self._response.item:
            self._truncate(self._response.item, 0, cut.heard_ms)
        return cut is not None

    def _cancel_answer(self, item: Item) -> None:
        """An answer that is being given ends, if it is this item's."""
        if self._response and self._response.item is item and self._response.is_due:
            self._cancel(self._response)

    @property
    def _must_wait(self) -> bool:
        """Whether a response that is asked for waits: for a commit, or for the end of one cancelled or out of band."""
        is_ending = self._is_responding and self._response is not None and self._response.is_cancelled
        return is_ending or self._unconfirmed.has_commit or self._out_of_band.is_open

    def _begin_out_of_band(self) -> None:
        """The next response out of band, where nothing is in its way."""
        is_speaking = self._turns.user_speaks or self._input.keeps_turn
        if not (is_speaking or self._is_responding or self._next_response or self._must_wait):
            self._out_of_band.begin_next()

    @property
    def _is_responding(self) -> bool:
        """Whether a response is open."""
        return self._response is not None and self._response.state is not State.DONE

    @property
    def _unrequested(self) -> Request:
        """The response that the engine gives without a request, with the options that it has as of this tick."""
        return Request(modality="audio" if self._engine_options.get("speech", True) else "text")

    def _begin_response(self, wanted: Request) -> None:
        self._response = self._new_response(wanted)
        self._send(*self._response.created())
        self._follow()

    def _new_response(self, wanted: Request) -> Response:
        about = {**self.session.about, "conversation_id": self._id}
        play = self._player.play if self._player else None
        return Response(about, wanted, play)

    def _start(self) -> None:
        """The conversation takes a place in the engine, if it has none yet. Raises `RefusedError`."""
        if not self._is_started:
            self._start_engine()
            self._is_started = True

    # From the engine

    def deliver(self, answer: TickOut, parameters: Mapping[str, Any] | None = None) -> None:
        """A tick's events and sound, in the protocol's words; `parameters` are those that the tick was asked with."""
        self._note_asked(parameters or {})
        ending = self._response if self._response and self._response.state is State.FINISHING else None
        if ending:  # the last of its sound: the tick's events are about what follows
            self._send(*ending.sound(answer.pcm))
        for found in answer.events:
            event = found.to_json()
            if event.get("out_of_band"):
                self._out_of_band.tell(event)
            else:
                self._turns.note(found)
                self._tell(event)
                self._out_of_band.note_other(event)
        self._out_of_band.sound(answer.pcm)
        if self._response and self._response is not ending:
            self._send(*self._response.sound(answer.pcm))
        if not self._is_responding:
            self._delete_at_last()
        self._begin_next_response()
        self._begin_out_of_band()
        self._follow()

    def _delete_at_last(self) -> None:
        """What could not leave the history while it was answered or spoken."""
        for turn, part in self._to_forget:
            self.clock.ask(forget=json.dumps({"turn": turn, "part": part}))
        for item in self._to_delete:
            self._delete(item)
        self._to_forget.clear()
        self._to_delete.clear()

    def _note_asked(self, parameters: Mapping[str, Any]) -> None:
        """What holds in the engine from this tick on, which a later `session.update` may have changed here already."""
        turn = {**parameters, **json.loads(parameters.get("turn", "{}"))}
        self._engine_options |= {name: turn[name] for name in ("create_response", "speech") if name in turn}
        if turn.get("detection") == "manual" and self.session.detection is None:
            self.clock.holds = True
        self._unconfirmed.note_asked(parameters)

    def _begin_next_response(self) -> None:
        """The response that waited, if nothing is in its way any more."""
        self._tell_dropped()
        if (waiting := self._next_response) and not self._must_wait:
            self._next_response = None
            try:
                self._ask_for(waiting.wanted)
            except RealtimeError as error:
                self._send(error_event(error, waiting.event_id))

    def fail(self, error: TickError) -> None:
        """The engine cannot go on with it."""
        code, kind, param = "full" if error.code is ErrorCode.FULL else "server_error", "server_error", None
        if error.code is ErrorCode.PROMPT_TOO_LONG:
            code, kind, param = "string_above_max_length", "invalid_request_error", "session.instructions"
        if self._player:
            self._player.clear()
        if self._response:
            self._send(*self._response.fail(code, str(error)))
        self._out_of_band.fail(code, str(error))
        self._send(error_event(RealtimeError(str(error), code, param), kind=kind))

    def _tell(self, event: Event) -> None:
        response = self._response
        match event["type"]:
            case "speech_started":
                self._speech_item = new_id("item")
                padding_ms = int((self.session.detection or {}).get("prefix_padding_ms", 0))
                is_given = not (self._out_of_band.is_open or (self._response and self._response.is_due))
                if is_given and self.session.turn_options().get("interrupt"):
                    self._fall_silent()  # of an answer that the engine has given already the last is still played
                self._send(
                    {
                        "type": "input_audio_buffer.speech_started",
                        "audio_start_ms": max(
                            self._input.spoken_at_ms(int(event["at_ms"]) - padding_ms), self._spoken_until_ms
                        ),
                        "item_id": self._speech_item,
                    }
                )
            case "speech_stopped":
                self._spoken_until_ms = self._input.spoken_at_ms(int(event["at_ms"]))
                self._send(
                    {
                        "type": "input_audio_buffer.speech_stopped",
                        "audio_end_ms": self._spoken_until_ms,
                        "item_id": self._speech_item,
                    }
                )
            case "committed":
                self._confirm(event)
            case "answer_started":
                if response is None or response.state is not State.CREATED:
                    self._begin_response(self._unrequested)
                    response = self._response
                assert response is not None
                self._send(*response.begin(event["turn"], self._items.last))
                assert response.item is not None
                self._items.add(response.item)
            case "text" if response:
                self._send(*response.text(event["text"]))
            case "answer_done" if response:
                response.ended(event)
            case "interrupted" if response:
                self._send(*response.interrupted(event))
                self._fall_silent()
            case "truncated":
                self._confirm_truncation(event["heard_text"])
            case "turns_dropped":
                self._items.drop_turn(event["turn"])
            case "error":
                self._tell_error(event)

    def _confirm(self, event: Event) -> None:
        """A turn is part of the engine's history: one that was added, or what the user has said."""
        if added := self._unconfirmed.confirmed(event):
            if self._unconfirmed.is_deleted(added):
                self._forget(added)
            return
        item = Item(self._speech_item or new_id("item"), "user", [{"type": "input_audio", "transcript": None}])
        item.turn, self._speech_item = event["turn"], ""
        previous = self._items.add(item)
        about = item.about()
        self._send(
            {"type": "input_audio_buffer.committed", "item_id": item.id, "previous_item_id": previous},
            {"type": "conversation.item.added", "previous_item_id": previous, "item": about},
            {"type": "conversation.item.done", "previous_item_id": previous, "item": about},
        )
        is_answered = self._engine_options.get("create_response", True)
        if is_answered and (self._response is None or self._response.state is State.DONE):
            self._begin_response(self._unrequested)

    def _confirm_truncation(self, heard_text: str | None = None) -> None:
        """The engine has cut an answer to what was heard of it; None: there was nothing to cut."""
        truncation = self._truncations.popleft()
        if heard_text is not None:
            truncation.item.keep(heard_text)
        self._send(truncation.event)

    def _tell_error(self, event: Event) -> None:
        """Errors of the engine that the client can do something about."""
        code, response = event["code"], self._response
        if code == "nothing_to_cancel" and response and response.is_cancelled and response.state is State.CREATED:
            self._send(*response.stop("client_cancelled"))  # it would have begun when the user had stopped
        if code == "nothing_to_forget" and response and response.state is not State.DONE:
            self._to_forget.append((event["turn"], event["part"]))
        if code == "nothing_to_truncate" and self._truncations:
            self._confirm_truncation()
        if code in ("nothing_to_cancel", "nothing_to_truncate", "nothing_to_forget"):
            return  # it had ended by itself meanwhile, or has left the context: what was asked for is so
        if code == "answer_active":
            return  # the user's turn ended first: its answer is the response that was asked for
        if code == "turn_too_long":
            if event.get("what") == "item":
                self._unconfirmed.refuse_text()
            if response:
                self._send(*response.fail(code, event["message"]))
        if code == "nothing_to_commit":
            if commit := self._unconfirmed.refused_commit():
                error = RealtimeError(event["message"], code="input_audio_buffer_commit_empty")
                self._send(error_event(error, commit.event_id))
        else:
            self._send(error_event(RealtimeError(event["message"], code=code)))

    def _follow(self) -> None:
        """Tells the clock what is going on."""
        response, clock = self._response, self.clock
        is_open = response is not None and response.state is not State.DONE
        modalities = {response.modality if is_open and response else None, self._out_of_band.modality}
        clock.is_active = is_open or self._turns.user_speaks or self._out_of_band.is_open
        clock.is_answering = "audio" in modalities
        clock.is_writing = "text" in modalities and not clock.is_answering and not self._turns.user_speaks
        clock.wake()
