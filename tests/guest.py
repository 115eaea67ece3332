"""A client at the bridge, in lockstep."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from websockets.sync.client import ClientConnection, connect

from tests.conftest import Served
from tests.turns import TICK


@dataclass
class Guest:
    """A conversation at the bridge, in lockstep: after each tick said, its answer is awaited."""

    socket: ClientConnection
    sounds: list[np.ndarray] = field(default_factory=list)  # one a tick
    events: list[dict[str, Any]] = field(default_factory=list)

    def hear(self, timeout: float = 20) -> np.ndarray:
        """The next tick's sound; events before it are noted."""
        while isinstance(message := self.socket.recv(timeout=timeout), str):
            self.events.append(json.loads(message))
        self.sounds.append(np.frombuffer(message, np.int16))
        return self.sounds[-1]

    def say(self, pcm: np.ndarray) -> None:
        """Whole ticks."""
        for start in range(0, len(pcm), TICK):
            self.socket.send(pcm[start : start + TICK].tobytes())
            self.hear()

    def ask(self, kind: str, **details: Any) -> None:
        self.socket.send(json.dumps({"type": kind, **details}))

    def wait_for(self, *wanted: str, ticks: int = 120) -> dict[str, Any]:
        """Silence until one of the events comes."""
        known = len(self.events)
        for _ in range(ticks):
            found = [event for event in self.events[known:] if event["type"] in wanted]
            if found:
                return found[0]
            self.say(np.zeros(TICK, np.int16))
        raise AssertionError(f"none of {wanted} came: {self.events}")


def guest(served: Served, options: str) -> Guest:
    socket = connect(f"{served.websocket}?{options}")
    assert json.loads(socket.recv())["dialect"] == "turn"
    return Guest(socket)
