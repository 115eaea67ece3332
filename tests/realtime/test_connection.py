"""One client's connection, whose channel and whose engine are the test."""

from __future__ import annotations

import asyncio
import json
import logging
from types import SimpleNamespace

import pytest

from config import Settings
from contract.events import AnswerStarted
from frontend.realtime.connection import RealtimeConnection
from frontend.session.session import EngineSession
from frontend.tick import TickOut

APPEND = json.dumps({"type": "response.create"})


class Channel:
    """A client that says one thing and stays."""

    def __init__(self, said: str):
        self._said = [said]
        self.told: list[dict] = []
        self.close_code: int | None = None

    async def receive(self) -> dict:
        if not self._said:
            await asyncio.Event().wait()
        return {"type": "websocket.receive", "text": self._said.pop(), "bytes": None}

    async def send_text(self, data: str) -> None:
        self.told.append(json.loads(data))

    async def close(self, code: int = 1000) -> None:
        self.close_code = code


def connection(channel: Channel, converse, player=None) -> RealtimeConnection:
    settings = Settings.load(environ={})
    bridge = SimpleNamespace(
        settings=settings,
        engine=SimpleNamespace(voices=("ethan",)),
        session=lambda place, protocol, name: EngineSession(settings.bridge, converse, place, protocol, name),
    )
    caller = SimpleNamespace(name="test", session={})
    place = SimpleNamespace(caller=caller, take=lambda: None, leave=lambda: None)
    return RealtimeConnection(channel, bridge, place, player=player)


def test_what_nobody_has_foreseen_is_told_and_logged(caplog: pytest.LogCaptureFixture):
    """It must not look like a conversation that has ended by itself."""

    async def converse(_, ticks):
        async for _ in ticks:
            yield TickOut(b"", "", [AnswerStarted(at_ms=0, turn=1)] * 2)  # an answer cannot begin twice

    caplog.set_level(logging.INFO, "sca.bridge")
    channel = Channel(APPEND)
    asyncio.run(asyncio.wait_for(connection(channel, converse).run(), 10))
    assert channel.close_code == 1011
    assert channel.told[-1]["error"]["message"] == "the conversation failed"
    (record,) = [record for record in caplog.records if record.getMessage() == "failed"]
    assert "IllegalTransitionError" in str(record.exc_text)
    assert [record.about["why"] for record in caplog.records if record.getMessage() == "ended"] == ["tick_failed"]


@pytest.mark.parametrize("is_call", [True, False])
def test_what_the_protocol_has_no_word_for_is_told_to_calls_alone(is_call: bool):
    """Stock clients over a WebSocket have ended at an event that they do not know."""

    async def converse(_, ticks):
        async for _ in ticks:
            yield TickOut(b"", "", [])

    async def run() -> list[str]:
        channel = Channel(APPEND)
        player = SimpleNamespace(play=lambda *_: None, clear=lambda: None) if is_call else None
        one = connection(channel, converse, player)
        running = asyncio.create_task(one.run())
        await one.notify({"type": "draining", "seconds": 5})
        await asyncio.sleep(0.1)
        one.hang_up()
        await running
        return [event["type"] for event in channel.told]

    assert ("draining" in asyncio.run(run())) == is_call
