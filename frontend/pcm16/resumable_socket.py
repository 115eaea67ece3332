"""A client's WebSocket, and the one that takes its place when the network has dropped it.

Messages of both directions are numbered by counting, the first is 0. Who comes back says how many they have got, and is
told how many came from them: each side sends what the other misses, so a conversation goes on at the right sample.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque

from fastapi import WebSocket, WebSocketDisconnect

from config.bridge import BridgeSettings
from frontend.pcm16.frames import Event, ProtocolError, event_text
from frontend.session.ended import CloseCode
from frontend.session.inbox import Inbox

GOODBYE = (1000, 1001)  # close codes of a client that hangs up, or whose page is left
KEPT_BYTES = 2**21  # of what was sent last, for a client that comes back: 40 s of sound


class ResumableSocket:
    """Sends and receives until the conversation is over; `inbox.is_over` once nobody will come back."""

    def __init__(self, socket: WebSocket, settings: BridgeSettings, is_resumable: bool):
        self._socket: WebSocket | None = socket  # the newest; None while nobody is there
        self._is_up_to_date = True  # it has got all that was sent before it came
        self._settings = settings
        self.inbox = Inbox(settings.text_per_second)
        self.token = secrets.token_urlsafe(24) if is_resumable else None
        self.reads_nothing = False  # why it is over
        self._reading = asyncio.create_task(self._read(socket))
        self._sending = asyncio.Lock()
        self._under_way: asyncio.Future[None] | None = None  # what is being sent
        self._kept: deque[bytes | str] = deque()
        self._kept_bytes = self._sent = 0
        self._waiting: asyncio.TimerHandle | None = None

    async def send(self, message: bytes | str) -> None:
        """Sends, or keeps it for a client that may come back; nothing where it is over."""
        if self.inbox.is_over:
            return
        async with self._sending:
            self._sent += 1
            if self.token:
                self._keep(message)
            if self._socket and self._is_up_to_date:
                await self._try(self._socket, message)

    async def resume(self, socket: WebSocket, received: int) -> None:
        """Goes on over `socket`, whose client has got `received` messages; returns when that WebSocket is done.

        Raises `ProtocolError` where what it misses is not kept any more.
        """
        first = self._sent - len(self._kept)
        if self.inbox.is_over or not first <= received <= self._sent:
            raise ProtocolError(
                "cannot_resume", f"{received} messages were received, expected {first} to {self._sent}: begin anew"
            )
        before, self._socket = self._socket, socket
        self._is_up_to_date = False
        self._reading.cancel()
        if self._under_way:
            self._under_way.cancel()  # to a network that takes no more
        if self._waiting:
            self._waiting.cancel()
        async with self._sending:
            try:
                await asyncio.wait_for(self._bring_up_to_date(socket, received), self._settings.read_timeout_s)
            except asyncio.TimeoutError:
                self._lost(socket, reads_nothing=True)
        if before:
            await _close(before, CloseCode.GOING_AWAY, self._settings.read_timeout_s)
        if self._socket is socket:
            await asyncio.wait({self._reading})

    async def _bring_up_to_date(self, socket: WebSocket, received: int) -> None:
        """Says what has come, sends what is missed, and begins to read; unless yet another has come meanwhile."""
        missed = self._sent - received
        waiting = [event_text(self.resumed_event), *list(self._kept)[len(self._kept) - missed :]]
        for message in waiting:
            if self._socket is not socket:
                return
            await self._try(socket, message)
        if self._socket is socket:
            self._is_up_to_date = True
            self._reading = asyncio.create_task(self._read(socket))

    @property
    def resumed_event(self) -> Event:
        """How much has come from the client."""
        return {"type": "conversation.resumed", "received": self.inbox.received}

    def cut(self) -> None:
        """The conversation is over: nothing more is read, and nobody may come back."""
        self.inbox.close()
        self._reading.cancel()
        if self._waiting:
            self._waiting.cancel()

    async def close(self, code: CloseCode) -> None:
        """Closes the WebSocket, if there is one."""
        if self._socket:
            await _close(self._socket, code, self._settings.read_timeout_s)

    async def _read(self, socket: WebSocket) -> None:
        said_goodbye = await self.inbox.read(socket) in GOODBYE
        self._lost(socket, is_final=said_goodbye)

    async def _try(self, socket: WebSocket, message: bytes | str) -> None:
        send = socket.send_bytes(message) if isinstance(message, bytes) else socket.send_text(message)
        sending = self._under_way = asyncio.ensure_future(send)
        try:
            done, _ = await asyncio.wait({sending}, timeout=self._settings.read_timeout_s)
            if not done:
                self._lost(socket, reads_nothing=True)
            elif not sending.cancelled():
                sending.result()
        except (WebSocketDisconnect, RuntimeError):  # RuntimeError is starlette's word for a socket already closed
            self._lost(socket)
        finally:
            sending.cancel()

    def _lost(self, socket: WebSocket, is_final: bool = False, reads_nothing: bool = False) -> None:
        """This WebSocket is gone: another may take its place, unless its client hung up or reads nothing."""
        if self._socket is not socket:
            return
        self.reads_nothing |= reads_nothing
        if self.token and not (is_final or reads_nothing or self.inbox.is_over):
            self._socket = None
            loop = asyncio.get_running_loop()
            self._waiting = loop.call_later(self._settings.resume_s, self.inbox.close)
        else:
            self.inbox.close()

    def _keep(self, message: bytes | str) -> None:
        self._kept.append(message)
        self._kept_bytes += len(message)
        while self._kept_bytes > KEPT_BYTES and self._is_up_to_date:  # else it is about to be sent
            self._kept_bytes -= len(self._kept.popleft())


async def _close(socket: WebSocket, code: CloseCode, within_s: float) -> None:
    try:
        await asyncio.wait_for(socket.close(code), within_s)
    except (WebSocketDisconnect, RuntimeError, asyncio.TimeoutError):
        return
