"""A conversation of the protocol whose engine is the test."""

from __future__ import annotations

import asyncio
import json

from config import Settings
from contract.events import event_of
from frontend.realtime.conversation import RealtimeConversation
from frontend.realtime.events import parse
from frontend.session.player import Cut, Player
from frontend.tick import TickOut

MANUAL = {"type": "realtime", "audio": {"input": {"turn_detection": None}}}
USAGE = dict.fromkeys(("input_tokens", "input_audio_tokens", "output_text_tokens", "output_audio_tokens"), 1)


class Talk:
    """What a client says, what it is told, and what is asked of the engine."""

    def __init__(self, player: Player | None = None) -> None:
        self.loop = asyncio.new_event_loop()
        self.told: list[dict] = []
        self.conversation = RealtimeConversation(
            Settings.load(environ={}), ["ethan"], "", 0, lambda *events: self.told.extend(events), lambda: None, player
        )

    def say(self, kind: str, **fields: object) -> None:
        self.loop.run_until_complete(self.conversation.take(parse(json.dumps({"type": kind, **fields}))))

    def asked(self) -> list[dict]:
        """The controls that have been asked of the engine, in order."""

        async def ticks() -> list[dict]:
            found = []
            while True:
                try:
                    found.append((await asyncio.wait_for(self.conversation.clock.next(), 0.05)).asked)
                except asyncio.TimeoutError:
                    return [asked for asked in found if asked]

        return self.loop.run_until_complete(ticks())

    def engine(self, **event: object) -> None:
        self.tick([event])

    def tick(self, events: list[dict], sound: bytes = b"", **asked: object) -> None:
        """The answer to a tick that carried these parameters."""
        self.conversation.deliver(TickOut(sound, "", [event_of(event) for event in events]), asked)

    def kinds(self) -> list[str]:
        return [event["type"] for event in self.told]


class Silent:
    """A loudspeaker that plays nothing yet."""

    def play(self, response_id: str, pcm: bytes, is_last: bool) -> None:
        pass

    def clear(self) -> Cut | None:
        return None


def typed(item_id: str) -> dict:
    return {"type": "message", "role": "user", "id": item_id, "content": [{"type": "input_text", "text": "Hello."}]}


def spoken_turn(number: int) -> dict:
    return {"type": "committed", "at_ms": 0, "turn": number, "audio_start_ms": 0, "audio_end_ms": 320}
