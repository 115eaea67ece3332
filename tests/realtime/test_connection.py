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
    """The channel of a client that sends one event and stays."""

    def __init__(self, event: str):
        self._pending = [event]
        self.received: list[dict] = []
        self.close_code: int | None = None

    async def receive(self) -> dict:
        if not self._pending:
            await asyncio.Event().wait()
        return {"type": "websocket.receive", "text": self._pending.pop(), "bytes": None}

    async def send_text(self, data: str) -> None:
        self.received.append(json.loads(data))

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


def test_unexpected_exception_ends_the_session_with_an_error_and_is_logged(caplog: pytest.LogCaptureFixture):
    """The end must differ from that of a conversation that was complete."""

    async def converse(_, ticks):
        async for _ in ticks:
            yield TickOut(b"", "", [AnswerStarted(at_ms=0, turn=1)] * 2)  # an answer cannot begin twice

    caplog.set_level(logging.INFO, "sca.bridge")
    channel = Channel(APPEND)
    asyncio.run(asyncio.wait_for(connection(channel, converse).run(), 10))
    assert channel.close_code == 1011
    assert channel.received[-1]["error"]["message"] == "the conversation failed"
    (record,) = [record for record in caplog.records if record.getMessage() == "failed"]
    assert "IllegalTransitionError" in str(record.exc_text)
    assert [record.about["why"] for record in caplog.records if record.getMessage() == "ended"] == ["tick_failed"]


@pytest.mark.parametrize("is_call", [True, False])
def test_event_outside_the_protocol_is_sent_to_calls_only(is_call: bool):
    """Some stock clients close their WebSocket at an unknown event."""

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
        return [event["type"] for event in channel.received]

    assert ("draining" in asyncio.run(run())) == is_call
