"""One client of the protocol: reads its events, writes what is said to it, and ticks the engine between."""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import AsyncIterator

from fastapi import WebSocketDisconnect

from frontend.access import RefusedError
from frontend.admission import Reservation
from frontend.bridge import Bridge
from frontend.log import Journal
from frontend.metrics import BEHIND
from frontend.realtime.conversation import Player, RealtimeConversation
from frontend.realtime.events import ClientEvent, Event, RealtimeError, error_event, new_id, parse, weight
from frontend.session.channel import Channel
from frontend.session.ended import CloseCode, end_of
from frontend.session.inbox import Inbox
from frontend.tick import TickError, TickIn, new_sequence_id

FRAME_CHARACTERS = 4  # times bridge.max_frame_bytes: of an event, whose sound is base64 of a higher rate
MAX_EVENTS_HELD = 2000  # for a client that does not read


class RealtimeConnection:
    """Runs from `session.created` to the close. The engine hears of it at the first sound, item or request."""

    def __init__(
        self,
        channel: Channel,
        bridge: Bridge,
        place: Reservation,
        model: str = "",
        session: Event | None = None,
        player: Player | None = None,
    ):
        """`player` has the sound where the events do not carry it. Raises `RealtimeError` where `session` cannot be."""
        settings = bridge.settings
        self._channel, self._bridge, self._settings, self._place = channel, bridge, settings, place
        self._inbox = Inbox(settings.bridge.text_per_second)
        self._outgoing: asyncio.Queue[str | None] = asyncio.Queue(MAX_EVENTS_HELD)
        self._engine: asyncio.Task[None] | None = None
        self._over = asyncio.Event()
        self.tick_s: float | None = None  # that the latest tick took
        self._close_code = CloseCode.NORMAL
        self._room = asyncio.Semaphore(settings.bridge.ticks_in_flight)
        self._asked: deque[Event] = deque()  # parameters of the ticks that are on their way
        expires_at = int(time.time() + settings.bridge.conversation_s)
        self._conversation = RealtimeConversation(
            settings, bridge.engine.voices, model[:100], expires_at, self.send, self._start, player
        )
        for wanted in (place.caller.session, session or {}):
            self._conversation.session.update(dict(wanted))
        self._conversation.open()
        session_id = self._conversation.session.about["id"]
        self._is_call = player is not None
        self._journal = Journal("webrtc" if self._is_call else "realtime", session_id, place.caller.name)
        self._why = "gone"  # it ends

    async def run(self) -> None:
        """Returns when the conversation is over and the channel is closed."""
        tasks = [asyncio.create_task(work) for work in (self._write(), self._hear(), self._read())]
        over = asyncio.create_task(self._over.wait())
        longest_s = self._settings.bridge.conversation_s
        try:
            done, _ = await asyncio.wait({*tasks, over}, timeout=longest_s, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                message = f"the session has lasted {longest_s:g} s (bridge.conversation_s)"
                await self.end("session_expired", message, CloseCode.POLICY_VIOLATION)
        finally:
            self._over.set()
            over.cancel()
            for task in tasks[1:]:
                task.cancel()
            if self._engine:
                self._engine.cancel()
                await asyncio.gather(self._engine, return_exceptions=True)
            self._finish_writing()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result
        self._place.leave()  # before the client hears of it: it may come again at once
        await self._close()
        self._journal.ended(self._why)

    def give_up(self, why: str) -> None:
        """It does not even begin."""
        self._over.set()
        self._journal.ended(why)

    async def end(self, code: str, message: str, close_code: CloseCode) -> None:
        """Ends it from outside, with the reason."""
        self._fail(code, message, close_code)

    def hang_up(self) -> None:
        """The client is gone, whatever of its events has not been dealt with."""
        self._over.set()

    async def tell(self, event: Event) -> None:
        """Says what the protocol has no word for: to our page alone, since other clients may end at such an event."""
        if self._is_call:
            self.send(event)

    async def hear(self, pcm: bytes) -> None:
        """Sound that came beside the events, PCM16 at 16 kHz."""
        if self._over.is_set():  # an engine that began now would be nobody's
            return
        try:
            await self._conversation.hear(pcm)
        except RefusedError as refusal:
            self._fail(refusal.code, refusal.message, CloseCode.TRY_AGAIN_LATER)

    def send(self, *events: Event) -> None:
        """Lets events be written, in order; the conversation of a client that reads nothing ends."""
        for event in events:
            try:
                self._outgoing.put_nowait(json.dumps({"event_id": new_id("event"), **event}, ensure_ascii=False))
            except asyncio.QueueFull:
                self._close_code, self._why = CloseCode.POLICY_VIOLATION, "reads_nothing"
                self._over.set()
                return

    async def _hear(self) -> None:
        await self._inbox.read(self._channel)
        self._inbox.close()

    async def _read(self) -> None:
        while (text := await self._inbox.take()) is not None:
            event_id = None
            try:
                event = self._parse(text)
                event_id = event.event_id
                if event.kind != "input_audio_buffer.append":
                    await self._inbox.pace(weight(event, len(text)))
                await self._conversation.take(event)
            except RealtimeError as error:
                self.send(error_event(error, event_id))
            except RefusedError as refusal:
                self._fail(refusal.code, refusal.message, CloseCode.TRY_AGAIN_LATER)
                return

    def _parse(self, text: bytes | str) -> ClientEvent:
        most = FRAME_CHARACTERS * self._settings.bridge.max_frame_bytes
        if isinstance(text, bytes):
            raise RealtimeError("a binary frame came, expected events as JSON text", code="invalid_event")
        if len(text) > most:
            message = f"an event of {len(text)} characters came, expected at most {most} (bridge.max_frame_bytes)"
            raise RealtimeError(message, code="frame_too_large")
        return parse(text)

    def _fail(self, code: str, message: str, close_code: CloseCode) -> None:
        self._close_code, self._why = close_code, code
        self.send(error_event(RealtimeError(message, code=code), kind="server_error"))
        self._over.set()

    def _start(self) -> None:
        self._place.take()
        self._engine = asyncio.create_task(self._converse())

    async def _converse(self) -> None:
        try:
            with self._journal.traced():
                async for answer in self._bridge.converse(new_sequence_id(), self._ticks()):
                    self._room.release()
                    parameters = self._asked.popleft()
                    if isinstance(answer, TickError):
                        raise answer
                    self.tick_s = answer.took_s
                    self._conversation.deliver(answer, parameters)
        except TickError as error:
            self._conversation.fail(error)
            self._why, self._close_code = end_of(error)
        except Exception:
            self._journal.failed()
            self._fail("server_error", "the conversation failed", CloseCode.INTERNAL_ERROR)
            self._why = "tick_failed"
        finally:
            self._over.set()

    async def _ticks(self) -> AsyncIterator[TickIn]:
        options: Event | None = self._conversation.session.options()
        while True:
            clock = self._conversation.clock
            pcm, asked, _ = await clock.next()
            await self._room.acquire()
            if not clock.holds:
                BEHIND.observe(clock.held_ms / 1000)
            parameters = {**(options or {}), **asked}
            self._asked.append(parameters)
            yield TickIn.from_parameters(pcm, parameters, self._settings.audio.tick_ms, start=options is not None)
            options = None

    async def _write(self) -> None:
        """Sends what waits; ends when the client is gone, or reads nothing for too long."""
        while (text := await self._outgoing.get()) is not None:
            try:
                await asyncio.wait_for(self._channel.send_text(text), self._settings.bridge.read_timeout_s)
            except asyncio.TimeoutError:
                self._close_code, self._why = CloseCode.POLICY_VIOLATION, "reads_nothing"
                return
            except (WebSocketDisconnect, RuntimeError):
                return  # RuntimeError is starlette's word for a socket already closed
            except ValueError:  # longer than its data channel takes
                self._close_code, self._why = CloseCode.MESSAGE_TOO_BIG, "event_too_long"
                return

    def _finish_writing(self) -> None:
        try:
            self._outgoing.put_nowait(None)
        except asyncio.QueueFull:
            while not self._outgoing.empty():
                self._outgoing.get_nowait()
            self._outgoing.put_nowait(None)

    async def _close(self) -> None:
        try:
            await asyncio.wait_for(self._channel.close(self._close_code), self._settings.bridge.read_timeout_s)
        except (WebSocketDisconnect, RuntimeError, asyncio.TimeoutError):
            return
