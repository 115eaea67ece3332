"""Client of the WebSocket protocol in lockstep: the client receives the output of a tick before it sends the next."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from websockets.sync.client import ClientConnection, connect

from tests.conftest import Served
from tests.turns import TICK


@dataclass
class LockstepClient:
    """Conversation with the bridge whose output is read tick by tick."""

    socket: ClientConnection
    sounds: list[np.ndarray] = field(default_factory=list)  # audio of each tick
    events: list[dict[str, Any]] = field(default_factory=list)

    def receive_tick(self, timeout: float = 20) -> np.ndarray:
        """Return the audio of the next tick; append the events before the audio to `events`."""
        while isinstance(message := self.socket.recv(timeout=timeout), str):
            self.events.append(json.loads(message))
        self.sounds.append(np.frombuffer(message, np.int16))
        return self.sounds[-1]

    def send_audio(self, pcm: np.ndarray) -> None:
        """Send whole ticks, and receive the output of each."""
        for start in range(0, len(pcm), TICK):
            self.socket.send(pcm[start : start + TICK].tobytes())
            self.receive_tick()

    def send_event(self, kind: str, **details: Any) -> None:
        self.socket.send(json.dumps({"type": kind, **details}))

    def wait_for(self, *kinds: str, ticks: int = 120) -> dict[str, Any]:
        """Send silence until an event of one of these kinds is received, and return the event."""
        known = len(self.events)
        for _ in range(ticks):
            found = [event for event in self.events[known:] if event["type"] in kinds]
            if found:
                return found[0]
            self.send_audio(np.zeros(TICK, np.int16))
        raise AssertionError(f"expected one of {kinds} within {ticks} ticks, got {self.events}")


def open_client(served: Served, options: str) -> LockstepClient:
    """Begin a conversation with a server of the dialect `turn`."""
    socket = connect(f"{served.websocket}?{options}")
    assert json.loads(socket.recv())["dialect"] == "turn"
    return LockstepClient(socket)
