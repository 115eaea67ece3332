"""The session core, whose protocol and whose engine are the test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest

from config import Settings
from contract.errors import ErrorCode
from contract.events import AnswerStarted, Committed
from frontend.session.ended import CLIENT_ENDED, CLIENT_LEFT, FAILED, CloseCode, Ended
from frontend.session.session import EngineSession
from frontend.tick import TickError, TickIn, TickOut

SETTINGS = Settings.load(environ={}).bridge


class FakeClient:
    """A protocol with a number of ticks."""

    def __init__(self, count: int):
        self._count = count
        self.delivered: list[tuple[TickOut, TickIn]] = []
        self.ends: list[Ended] = []

    async def ticks(self) -> AsyncIterator[TickIn]:
        for number in range(self._count):
            await self.session.ready()
            yield TickIn(bytes([number]), start=number == 0)

    async def deliver(self, tick: TickOut, sent: TickIn) -> None:
        self.delivered.append((tick, sent))

    async def end(self, ended: Ended) -> None:
        if self.session.end(ended):
            self.ends.append(ended)


def run(client: FakeClient, converse: Callable, in_flight: int = 4) -> EngineSession:
    async def check() -> EngineSession:
        reservation = SimpleNamespace(caller=SimpleNamespace(name="test"), take=lambda: None, leave=lambda: None)
        session = client.session = EngineSession(
            replace(SETTINGS, ticks_in_flight=in_flight), converse, reservation, "pcm16"
        )
        await session.run(client)
        return session

    return asyncio.run(asyncio.wait_for(check(), 20))


def test_answers_are_delivered_with_their_ticks_and_measured():
    async def converse(_, ticks):
        waiting = []
        async for tick in ticks:
            waiting.append(tick)
            if len(waiting) == 2:  # two ticks are in flight
                for each in waiting:
                    events = [Committed(at_ms=0, turn=1), AnswerStarted(at_ms=0, turn=1)] if each.start else []
                    yield TickOut(each.pcm, "", events, took_s=0.25)
                waiting = []

    client = FakeClient(6)
    session = run(client, converse)
    assert [(tick.pcm, sent.pcm) for tick, sent in client.delivered] == [(bytes([n]), bytes([n])) for n in range(6)]
    assert (session.ticks, session.answers, session.tick_s) == (6, 1, 0.25)
    assert session.ended is CLIENT_LEFT


def test_ticks_in_flight_are_bounded():
    max_seen = 0

    async def converse(_, ticks):
        nonlocal max_seen
        waiting: asyncio.Queue[TickIn] = asyncio.Queue()

        async def read() -> None:
            async for tick in ticks:
                waiting.put_nowait(tick)

        reading = asyncio.create_task(read())
        for _ in range(10):
            tick = await waiting.get()
            await asyncio.sleep(0.001)
            max_seen = max(max_seen, waiting.qsize() + 1)
            yield TickOut(tick.pcm, "", [])
        await reading

    run(FakeClient(10), converse, in_flight=3)
    assert max_seen == 3


@pytest.mark.parametrize(
    ("error", "why", "close_code"),
    [
        (TickError("no slot", ErrorCode.FULL), "full", CloseCode.TRY_AGAIN_LATER),
        (TickError("too long", ErrorCode.PROMPT_TOO_LONG), "bad_option", CloseCode.POLICY_VIOLATION),
        (TickError("bad voice", ErrorCode.BAD_OPTION), "bad_option", CloseCode.POLICY_VIOLATION),
        (TickError("lost"), "tick_failed", CloseCode.INTERNAL_ERROR),
    ],
)
@pytest.mark.parametrize("is_raised", [True, False])
def test_error_of_a_tick_ends_the_conversation_by_its_code(error, why, close_code, is_raised):
    async def converse(_, ticks):
        async for _ in ticks:
            if is_raised:
                raise error
            yield error

    session = run(client := FakeClient(1), converse)
    assert (session.ended.why, session.ended.close_code, session.ended.code) == (why, close_code, error.code)
    assert client.ends == [session.ended]
    assert session.ended.is_engine


def test_unexpected_failure_ends_the_conversation_and_is_logged(caplog: pytest.LogCaptureFixture):
    async def converse(_, ticks):
        async for _ in ticks:
            yield TickOut(b"", "", [])

    class Broken(FakeClient):
        async def deliver(self, tick: TickOut, sent: TickIn) -> None:
            raise KeyError("turn")

    with caplog.at_level("INFO", "sca.bridge"):
        session = run(Broken(1), converse)
    assert session.ended is FAILED
    assert "KeyError: 'turn'" in caplog.text


def test_reason_of_the_end_is_set_once():
    async def converse(_, ticks):
        async for _ in ticks:
            yield TickOut(b"", "", [])

    session = run(FakeClient(1), converse)
    session.expected_end = CLIENT_ENDED
    assert session.ended is CLIENT_ENDED
    first, second = Ended.of_error(ErrorCode.IDLE, "idle"), Ended.of_error(ErrorCode.EXPIRED, "expired")
    assert session.end(first)
    assert not session.end(second)
    assert session.ended is first
    assert session.over.is_set()
