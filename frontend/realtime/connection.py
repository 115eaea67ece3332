"""One client of `/v1/realtime`, over a WebSocket or a call: its events in, the protocol's events out, ticks between."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from contract.errors import ErrorCode
from frontend.access import RefusedError
from frontend.admission import Reservation
from frontend.bridge import Bridge
from frontend.metrics import BEHIND
from frontend.realtime.conversation import RealtimeConversation
from frontend.realtime.events import (
    ClientEvent,
    ClientEventType,
    Event,
    RealtimeError,
    error_event,
    new_id,
    parse,
    weight,
)
from frontend.session.channel import Channel
from frontend.session.ended import CLIENT_LEFT, NOT_CONNECTED, READS_NOTHING, Ended
from frontend.session.inbox import Inbox
from frontend.session.outbox import Outbox
from frontend.session.player import Player
from frontend.tick import TickError, TickIn, TickOut

FRAME_CHARACTERS = 4  # max. characters of an event, in bridge.max_frame_bytes: base64 of audio at a higher rate


class RealtimeConnection:
    """Runs from `session.created` to the close. The engine's conversation begins with the first audio or request."""

    def __init__(
        self,
        channel: Channel,
        bridge: Bridge,
        reservation: Reservation,
        model: str = "",
        session: Event | None = None,
        player: Player | None = None,
    ):
        """Begin a session; `player` plays the audio of a call, whose events carry none. Raises `RealtimeError`."""
        settings = self._settings = bridge.settings
        self._inbox = Inbox(settings.bridge.text_per_second)
        self._outbox = Outbox(channel, settings.bridge.read_timeout_s)
        self._channel, self._is_call = channel, player is not None
        self._engine: asyncio.Task[None] | None = None
        expires_at = int(time.time() + settings.bridge.conversation_s)
        self._conversation = RealtimeConversation(
            settings, bridge.engine.voices, model[:100], expires_at, self.send, self._start, player
        )
        for requested in (reservation.caller.session, session or {}):
            self._conversation.session.update(dict(requested))
        self._conversation.open()
        name = self._conversation.session.about["id"]
        self._session = bridge.session(reservation, "webrtc" if self._is_call else "realtime", name)

    @property
    def tick_s(self) -> float | None:
        """Duration of the latest tick in seconds; None before the first."""
        return self._session.tick_s

    async def run(self) -> None:
        """Serve the client until the session is over and the channel is closed."""
        session = self._session
        writing = asyncio.create_task(self._outbox.write())
        reading = [asyncio.create_task(self._receive()), asyncio.create_task(self._handle())]
        over = asyncio.create_task(session.over.wait())
        try:
            tasks: set[asyncio.Task[Any]] = {writing, *reading, over}
            done, _ = await asyncio.wait(tasks, timeout=session.remaining_s, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                lasted_s = self._settings.bridge.conversation_s
                message = f"the session has lasted {lasted_s:g} s (bridge.conversation_s)"
                await self.end(Ended.of_error(ErrorCode.SESSION_EXPIRED, message))
            if writing.done() and not writing.exception() and (ended := writing.result()):
                session.end(ended)
        finally:
            session.end(CLIENT_LEFT)
            cancelled = [*reading, over, *([self._engine] if self._engine else [])]
            for each in cancelled:
                each.cancel()
            await asyncio.gather(*cancelled, return_exceptions=True)
            self._outbox.finish()
            await asyncio.gather(writing, return_exceptions=True)
        for task in (writing, *reading):
            if not task.cancelled() and (error := task.exception()):
                raise error
        session.leave()
        await self._outbox.close(session.ended.close_code)
        session.close()

    def give_up(self) -> None:
        """End a session whose client did not connect."""
        self._session.end(NOT_CONNECTED)
        self._session.close()

    def hang_up(self) -> None:
        """Note that the client has left; its events that wait are dropped."""
        self._session.end(CLIENT_LEFT)

    async def end(self, ended: Ended) -> None:
        """End the session; the client receives the error, if there is one."""
        if not self._session.end(ended) or ended.code is None:
            return
        if ended.is_engine:
            self._conversation.fail(TickError(ended.message, ended.code))
        else:
            self.send(error_event(RealtimeError(ended.message, code=ended.code.value), kind="server_error"))

    async def notify(self, event: Mapping[str, Any]) -> None:
        """Send an event that the protocol does not have. Calls only: some stock clients close on unknown events."""
        if self._is_call:
            self.send(dict(event))

    async def append_audio(self, pcm: bytes) -> None:
        """Append audio of a call, PCM16 at 16 kHz."""
        if self._session.over.is_set():  # do not start a conversation of the engine at the end
            return
        try:
            await self._conversation.append_audio(pcm)
        except RefusedError as refusal:
            await self.end(Ended.of_refusal(refusal))

    def send(self, *events: Event) -> None:
        """Send events, in order; ends the session of a client that reads nothing."""
        for event in events:
            text = json.dumps({"event_id": new_id("event"), **event}, ensure_ascii=False)
            if not self._outbox.put(text):
                self._session.end(READS_NOTHING)
                return

    async def ticks(self) -> AsyncIterator[TickIn]:
        """Yield a tick when the clock has one."""
        options = self._conversation.session.options()
        while True:
            clock = self._conversation.clock
            pcm, controls, _ = await clock.next()
            await self._session.ready()
            if not clock.holds:
                BEHIND.observe(clock.held_ms / 1000)
            yield TickIn(pcm, start=not self._session.ticks, controls=controls, options=options)
            options = {}

    async def deliver(self, tick: TickOut, requested: TickIn) -> None:
        """Send a tick's events and audio, as the protocol's events."""
        self._conversation.deliver(tick, requested)

    async def _receive(self) -> None:
        await self._inbox.read(self._channel)
        self._inbox.close()

    async def _handle(self) -> None:
        while (text := await self._inbox.take()) is not None:
            event_id = None
            try:
                event = self._parse(text)
                event_id = event.event_id
                if event.kind is not ClientEventType.APPEND_AUDIO:
                    await self._inbox.pace(weight(event, len(text)))
                await self._conversation.receive(event)
            except RealtimeError as error:
                self.send(error_event(error, event_id))
            except RefusedError as refusal:
                await self.end(Ended.of_refusal(refusal))
                return

    def _parse(self, text: bytes | str) -> ClientEvent:
        max_characters = FRAME_CHARACTERS * self._settings.bridge.max_frame_bytes
        if isinstance(text, bytes):
            message = "expected events as JSON text, got a binary frame"
            raise RealtimeError(message, code=ErrorCode.INVALID_EVENT.value)
        if len(text) > max_characters:
            message = f"expected an event of at most {max_characters} characters (bridge.max_frame_bytes), "
            raise RealtimeError(f"{message}got {len(text)}", code=ErrorCode.FRAME_TOO_LARGE.value)
        return parse(text)

    def _start(self) -> None:
        self._session.reserve()
        self._engine = asyncio.create_task(self._session.run(self))
