"""A conversation of the protocol without a socket, whose engine is the test."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

from config import Settings
from contract.controls import Controls
from contract.events import event_of
from frontend.realtime.conversation import RealtimeConversation
from frontend.realtime.events import parse
from frontend.session.player import Cut, Player
from frontend.session.server_clock import DueTick
from frontend.tick import TickIn, TickOut

MANUAL = {"type": "realtime", "audio": {"input": {"turn_detection": None}}}
DETECTED = {"type": "realtime", "audio": {"input": {"turn_detection": {"type": "server_vad"}}}}
USAGE = dict.fromkeys(("input_tokens", "input_audio_tokens", "output_text_tokens", "output_audio_tokens"), 1)
HALF_A_SECOND = base64.b64encode(bytes(24_000)).decode()
AT_ONCE_S = 0.05
TICK_OF_AUDIO = bytes(2 * 7680)


class Talk:
    """A client's events, what the client receives, and the controls that the engine receives."""

    def __init__(self, player: Player | None = None) -> None:
        self.loop = asyncio.new_event_loop()
        self.now_s = 100.0
        self.received: list[dict] = []
        self.conversation = RealtimeConversation(
            Settings.load(environ={}),
            ["ethan"],
            "",
            0,
            lambda *events: self.received.extend(events),
            lambda: None,
            player,
            now=lambda: self.now_s,
        )

    def send(self, kind: str, **fields: object) -> None:
        self.loop.run_until_complete(self.conversation.receive(parse(json.dumps({"type": kind, **fields}))))

    def append(self, audio: str = HALF_A_SECOND) -> None:
        self.send("input_audio_buffer.append", audio=audio)

    def next_tick(self) -> DueTick | None:
        """Return a tick that is due now."""
        while not isinstance(found := self.conversation.clock.poll(), DueTick):
            if found is None or found > AT_ONCE_S:
                return None
            self.now_s += found
        return found

    def controls(self) -> list[Controls]:
        """Return the controls that the engine has received since the last call, in order."""
        found = []
        while tick := self.next_tick():
            found.append(tick.controls)
        return [controls for controls in found if controls != Controls()]

    def report(self, kind: str, **event: object) -> None:
        """Deliver one event of the engine."""
        self.tick([{"type": kind, **event}])

    def tick(self, events: list[dict], audio: bytes = b"", **controls: Any) -> None:
        """Deliver the answer to a tick that carried these controls."""
        found = [event_of({"at_ms": 0, **event}) for event in events]
        self.conversation.deliver(TickOut(audio, "", found), TickIn(b"", controls=Controls(**controls)))

    def kinds(self) -> list[str]:
        return [event["type"] for event in self.received]

    def of_kind(self, kind: str) -> list[dict]:
        return [event for event in self.received if event["type"] == kind]

    def ladder(self) -> list[str]:
        """Return the beginnings and ends of responses."""
        return [kind for kind in self.kinds() if kind in ("response.created", "response.done")]


class Silent:
    """A player that has nothing to play."""

    def play(self, response_id: str, pcm: bytes, is_last: bool) -> None:
        pass

    def clear(self) -> Cut | None:
        return None


def typed(item_id: str) -> dict:
    return {"type": "message", "role": "user", "id": item_id, "content": [{"type": "input_text", "text": "Hello."}]}


def spoken_turn(number: int) -> dict:
    return {"type": "committed", "turn": number, "audio_start_ms": 0, "audio_end_ms": 320}


def answer_started(turn: int) -> dict:
    return {"type": "answer_started", "turn": turn}


def answer_done(turn: int, spoken_ms: int = 0, text: str = "") -> dict:
    return {"type": "answer_done", "turn": turn, "spoken_ms": spoken_ms, "text": text, "reason": "end", **USAGE}


def interrupted(turn: int, by: str = "cancel", heard_text: str = "") -> dict:
    return {"type": "interrupted", "turn": turn, "by": by, "heard_ms": 0, "heard_text": heard_text, **USAGE}


def error(code: str, **details: object) -> dict:
    return {"type": "error", "code": code, "message": "the engine's reason", **details}
