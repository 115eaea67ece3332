"""The bounds of a TCP connection, below HTTP and WebSocket."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

REQUEST_TIMEOUT_S = 10.0  # timeout of the first whole request
MAX_TARGET = 8000  # bytes of a path with its query: the WebSocket library accepts lines of 8 KB
MAX_HEADER = 8000
SEND_BUFFER = 128 * 1024  # bytes in the kernel for a client that does not read: a few seconds of audio
KEEPALIVE = {"TCP_KEEPIDLE": 20, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}  # a lost host is noticed within 35 s


class BoundedHttp(H11Protocol):
    """uvicorn's HTTP protocol; a late or too long request receives an error, and its connection is closed."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Set the socket's options and the timeout."""
        super().connection_made(transport)
        _set_options(transport.get_extra_info("socket"))
        self._alarm = self.loop.call_later(REQUEST_TIMEOUT_S, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the timeout."""
        self._alarm.cancel()
        super().connection_lost(exc)

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """Refuse lines that the WebSocket library would not answer."""
        self._alarm.cancel()
        if len(event.target) > MAX_TARGET:
            self._refuse(414, f"expected a path and query of at most {MAX_TARGET} bytes, got {len(event.target)}")
        elif (longest := max(len(name) + len(value) for name, value in event.headers)) > MAX_HEADER:
            self._refuse(431, f"expected headers of at most {MAX_HEADER} bytes, got {longest}")
        else:
            super().handle_websocket_upgrade(event)

    def _give_up(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self._refuse(408, f"expected a whole request within {REQUEST_TIMEOUT_S:g} s")

    def _refuse(self, status: int, message: str) -> None:
        headers: list[tuple[bytes, Any]] = [
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"content-length", str(len(message)).encode()),
            (b"connection", b"close"),
        ]
        for event in (
            h11.Response(status_code=status, headers=headers),
            h11.Data(message.encode()),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def _set_options(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if hasattr(socket, name):  # Linux; other systems keep their defaults
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
