"""Helpers of tests with a WebSocket of `/ws/pcm16`."""

from __future__ import annotations

import contextlib
import json
import time
import urllib.error
import urllib.request
from typing import Protocol

import numpy as np
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection


class Reachable(Protocol):
    """A bridge."""

    @property
    def http(self) -> str: ...


def health(served: Reachable) -> dict:
    with urllib.request.urlopen(f"{served.http}/healthz") as response:
        return json.load(response)


def wait_until_empty(served: Reachable, of: str = "conversations", seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while health(served)[of]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def event(socket: ClientConnection, kind: str) -> dict:
    """Return the next event of a kind; audio and other events are skipped, an error fails the test."""
    while True:
        message = socket.recv(timeout=20)
        if isinstance(message, str):
            found = json.loads(message)
            if found["type"] == kind:
                return found
            assert found["type"] != "error", found


def send_unless_closed(socket: ClientConnection, data: bytes) -> None:
    """Send as a client whose server was just killed: the bridge may have closed the WebSocket already."""
    with contextlib.suppress(ConnectionClosed):
        socket.send(data)


def rest(socket: ClientConnection, events: list[dict] | None = None) -> tuple[bytes, int]:
    """Return all audio until the bridge closes, and the close code; events are appended to `events`."""
    sound = b""
    try:
        while True:
            message = socket.recv(timeout=20)
            if isinstance(message, bytes):
                sound += message
            elif events is not None:
                events.append(json.loads(message))
    except ConnectionClosed as closed:
        return sound, closed.rcvd.code if closed.rcvd else 1006


def end(socket: ClientConnection, events: list[dict] | None = None) -> tuple[np.ndarray, int]:
    socket.send(json.dumps({"type": "end"}))
    sound, code = rest(socket, events)
    return np.frombuffer(sound, np.int16), code
