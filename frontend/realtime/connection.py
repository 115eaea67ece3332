"""One WebSocket of the protocol: reads the client's events, writes what is said to it, and ticks the engine between."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence

from fastapi import WebSocket, WebSocketDisconnect

from config import Settings
from frontend.protocol import CloseCode
from frontend.realtime.conversation import RealtimeConversation
from frontend.realtime.events import Event, RealtimeError, error_event, new_id, parse
from frontend.triton import TickError, TickIn, TritonLink, new_sequence_id

LONGEST_S = 3600  # of a session, as OpenAI's
MOST_EVENTS_HELD = 2000  # for a client that does not read


class RealtimeConnection:
    """Runs from `session.created` to the close. The engine hears of it at the first sound, item or request."""

    def __init__(self, socket: WebSocket, link: TritonLink, settings: Settings, voices: Sequence[str], model: str = ""):
        self._socket, self._link, self._settings = socket, link, settings
        self._outgoing: asyncio.Queue[str | None] = asyncio.Queue(MOST_EVENTS_HELD)
        self._engine: asyncio.Task[None] | None = None
        self._over = asyncio.Event()
        self._close_code = CloseCode.NORMAL
        self._room = asyncio.Semaphore(settings.bridge.ticks_in_flight)
        expires_at = int(time.time()) + LONGEST_S
        self._conversation = RealtimeConversation(settings, voices, model, expires_at, self._send, self._start)

    async def run(self) -> None:
        """Returns when the conversation is over and the WebSocket is closed."""
        writer = asyncio.create_task(self._write())
        reader = asyncio.create_task(self._read())
        over = asyncio.create_task(self._over.wait())
        try:
            await asyncio.wait({reader, writer, over}, timeout=LONGEST_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._over.set()
            reader.cancel()
            over.cancel()
            if self._engine:
                self._engine.cancel()
                await asyncio.gather(self._engine, return_exceptions=True)
            self._finish_writing()
            await asyncio.gather(reader, writer, return_exceptions=True)
        for task in (reader, writer):
            if not task.cancelled() and (error := task.exception()):
                raise error
        await self._close()

    async def _read(self) -> None:
        while True:
            message = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            text, event_id = message.get("text"), None
            try:
                if text is None:
                    raise RealtimeError("a binary frame came, expected events as JSON text", code="invalid_event")
                event = parse(text)
                event_id = event.event_id
                await self._conversation.take(event)
            except RealtimeError as error:
                self._send(error_event(error, event_id))

    def _start(self) -> None:
        self._engine = asyncio.create_task(self._converse())

    async def _converse(self) -> None:
        try:
            async for answer in self._link.converse(new_sequence_id(), self._ticks()):
                self._room.release()
                if isinstance(answer, TickError):
                    raise answer
                self._conversation.deliver(answer)
        except TickError as error:
            self._conversation.fail(error)
            self._close_code = CloseCode.TRY_AGAIN_LATER if error.is_full else CloseCode.INTERNAL_ERROR
        self._over.set()

    async def _ticks(self) -> AsyncIterator[TickIn]:
        options: Event | None = self._conversation.session.options()
        while True:
            pcm, asked = await self._conversation.clock.next()
            await self._room.acquire()
            yield TickIn(pcm, start=options is not None, parameters={**(options or {}), **asked})
            options = None

    def _send(self, *events: Event) -> None:
        for event in events:
            try:
                self._outgoing.put_nowait(json.dumps({"event_id": new_id("event"), **event}, ensure_ascii=False))
            except asyncio.QueueFull:  # it reads no more: its conversation ends
                self._close_code = CloseCode.POLICY_VIOLATION
                self._over.set()
                return

    async def _write(self) -> None:
        """Sends what waits; ends when the client is gone, or reads nothing for too long."""
        while (text := await self._outgoing.get()) is not None:
            try:
                await asyncio.wait_for(self._socket.send_text(text), self._settings.bridge.response_timeout_s)
            except (WebSocketDisconnect, RuntimeError, asyncio.TimeoutError):
                return  # RuntimeError is starlette's word for a socket already closed

    def _finish_writing(self) -> None:
        try:
            self._outgoing.put_nowait(None)
        except asyncio.QueueFull:
            while not self._outgoing.empty():
                self._outgoing.get_nowait()
            self._outgoing.put_nowait(None)

    async def _close(self) -> None:
        try:
            await asyncio.wait_for(self._socket.close(self._close_code), self._settings.bridge.response_timeout_s)
        except (WebSocketDisconnect, RuntimeError, asyncio.TimeoutError):
            return
