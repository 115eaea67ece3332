"""A client's WebSocket, which another one can replace after a loss of the network.

Each side counts the messages of both directions. A client that resumes sends the number of messages that it has
received, and receives the number of its messages that the bridge has received: each side sends the missing ones, so
the conversation continues at the right sample.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum, auto

from fastapi import WebSocket, WebSocketDisconnect

from config.bridge import BridgeSettings
from contract.errors import ErrorCode
from frontend.pcm16.frames import ProtocolError, event_text
from frontend.session.channel import close
from frontend.session.ended import CloseCode
from frontend.session.inbox import Inbox

GOODBYE = (1000, 1001)  # close codes of a client that ends the conversation, or whose page is left
MAX_KEPT_BYTES = 2**21  # latest messages, kept for a client that resumes: 40 s of audio


class SocketState(Enum):
    """The state of the connection to the client."""

    CURRENT = auto()  # a WebSocket is connected, and every message has been sent
    BEHIND = auto()  # the client has resumed; the messages that it has missed are being sent
    AWAY = auto()  # the network has dropped the WebSocket; the client may resume
    STALLED = auto()  # over: the client did not accept a message in time
    CLOSED = auto()  # over


OVER = (SocketState.STALLED, SocketState.CLOSED)


class ResumableSocket:
    """Sends and receives until the conversation is over; then `inbox.is_over`."""

    def __init__(self, socket: WebSocket, settings: BridgeSettings, is_resumable: bool):
        self.state = SocketState.CURRENT
        self.inbox = Inbox(settings.text_per_second)
        self.token = secrets.token_urlsafe(24) if is_resumable else None
        self._socket: WebSocket | None = socket  # the newest; None if the client is away
        self._settings = settings
        self._reading = asyncio.create_task(self._read(socket))
        self._sending = asyncio.Lock()
        self._current: asyncio.Future[None] | None = None  # the message that is being sent
        self._kept: deque[bytes | str] = deque()
        self._kept_bytes = self._sent = 0
        self._expiry: asyncio.TimerHandle | None = None  # end of the time in which the client may resume

    async def send(self, message: bytes | str) -> None:
        """Send a message, or keep it for a client that may resume; a no-op if the conversation is over."""
        if self.inbox.is_over:
            return
        async with self._sending:
            self._sent += 1
            if self.token:
                self._keep(message)
            if self._socket and self.state is SocketState.CURRENT:
                await self._try(self._socket, message)

    async def resume(self, socket: WebSocket, received: int) -> None:
        """Continue over `socket`, whose client has received `received` messages; returns when `socket` is done.

        Raises `ProtocolError` if missing messages are no longer kept.
        """
        first = self._sent - len(self._kept)
        if self.inbox.is_over or not first <= received <= self._sent:
            message = f"expected {first} to {self._sent} received messages, got {received}: begin a new conversation"
            raise ProtocolError(ErrorCode.CANNOT_RESUME, message)
        before, self._socket, self.state = self._socket, socket, SocketState.BEHIND
        self._reading.cancel()
        if self._current:
            self._current.cancel()  # to a network that accepts no more
        self._cancel_expiry()
        async with self._sending:
            try:
                await asyncio.wait_for(self._catch_up(socket, received), self._settings.read_timeout_s)
            except asyncio.TimeoutError:
                self._lose(socket, is_stalled=True)
        if before:
            await close(before, CloseCode.GOING_AWAY, self._settings.read_timeout_s)
        if self._socket is socket:
            await asyncio.wait({self._reading})

    async def _catch_up(self, socket: WebSocket, received: int) -> None:
        """Send the missing messages and begin to read, unless yet another WebSocket has replaced this one."""
        resumed = event_text({"type": "conversation.resumed", "received": self.inbox.received})
        missed = list(self._kept)[len(self._kept) - (self._sent - received) :]
        for message in (resumed, *missed):
            if self._socket is not socket:
                return
            await self._try(socket, message)
        if self._socket is socket and self.state is SocketState.BEHIND:
            self.state = SocketState.CURRENT
            self._reading = asyncio.create_task(self._read(socket))

    def cut(self) -> None:
        """End the conversation: nothing more is read, and the client cannot resume."""
        if self.state not in OVER:
            self.state = SocketState.CLOSED
        self.inbox.close()
        self._reading.cancel()
        self._cancel_expiry()

    async def close(self, code: CloseCode) -> None:
        """Close the WebSocket, if there is one."""
        if self._socket:
            await close(self._socket, code, self._settings.read_timeout_s)

    async def _read(self, socket: WebSocket) -> None:
        is_final = await self.inbox.read(socket) in GOODBYE
        self._lose(socket, is_final)

    async def _try(self, socket: WebSocket, message: bytes | str) -> None:
        send = socket.send_bytes(message) if isinstance(message, bytes) else socket.send_text(message)
        sending = self._current = asyncio.ensure_future(send)
        try:
            done, _ = await asyncio.wait({sending}, timeout=self._settings.read_timeout_s)
            if not done:
                self._lose(socket, is_stalled=True)
            elif not sending.cancelled():
                sending.result()
        except (WebSocketDisconnect, RuntimeError):  # starlette raises RuntimeError for a closed WebSocket
            self._lose(socket)
        finally:
            sending.cancel()

    def _lose(self, socket: WebSocket, is_final: bool = False, is_stalled: bool = False) -> None:
        """Note that this WebSocket is lost: the client may resume, unless it has ended the conversation or stalled."""
        if self._socket is not socket or self.state in OVER:
            return
        if self.token and not (is_final or is_stalled or self.inbox.is_over):
            self._socket, self.state = None, SocketState.AWAY
            self._expiry = asyncio.get_running_loop().call_later(self._settings.resume_s, self.cut)
        else:
            self.state = SocketState.STALLED if is_stalled else SocketState.CLOSED
            self.inbox.close()

    def _keep(self, message: bytes | str) -> None:
        self._kept.append(message)
        self._kept_bytes += len(message)
        while self._kept_bytes > MAX_KEPT_BYTES and self.state is not SocketState.BEHIND:  # else it is being sent
            self._kept_bytes -= len(self._kept.popleft())

    def _cancel_expiry(self) -> None:
        if self._expiry:
            self._expiry.cancel()


class ResumableSockets:
    """The sockets whose clients may resume, by their tokens."""

    def __init__(self) -> None:
        self._sockets: dict[str, ResumableSocket] = {}

    @contextmanager
    def registered(self, socket: ResumableSocket) -> Iterator[None]:
        """Let the client resume inside of the context, if the socket has a token."""
        if socket.token:
            self._sockets[socket.token] = socket
        try:
            yield
        finally:
            self._sockets.pop(socket.token or "", None)

    def get(self, token: str) -> ResumableSocket:
        """Return the socket of a token. Raises `ProtocolError`."""
        if token not in self._sockets:
            message = "no conversation waits for this token: it has ended, or was not resumed within bridge.resume_s"
            raise ProtocolError(ErrorCode.CANNOT_RESUME, f"{message}; begin a new conversation")
        return self._sockets[token]
