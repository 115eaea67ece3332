"""A conversation whose server is gone goes on where another one reads its history (`bridge.move_within_s`)."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from config import Settings
from contract.events import event_of
from frontend.failover.replay_log import ITEMS_AT_ONCE, Part, Replay, ReplayLog
from frontend.failover.replayable import HandOver
from frontend.log import logger
from frontend.metrics import MOVED
from frontend.tick import Converse, TickError, TickIn, TickOut, new_sequence_id

RETRY_S = 0.5
READ_AT_ONCE = 8  # ticks of a reading on their way
DECIDES = {"respond", "message", "commit", "cancel", "listen", "reset"}  # whether and when there is an answer
Event = dict[str, Any]
TIMES = ("at_ms", "audio_start_ms", "audio_end_ms")


class Renumbering:
    """A server's turn numbers and times, which begin with its reading, and the client's."""

    def __init__(self, reading: Replay | None, history: ReplayLog):
        self._history = history
        self._parts = iter(reading.parts if reading else ())
        self._known: dict[int, Part] = {}  # the server's number: the client's part
        self._spans: dict[int, tuple[int, int]] = {}  # the server's begin of a user's speech: the client's span
        self._numbers: dict[int, int] = {}  # of turns begun since: the server's and the client's
        read = len(reading.ticks) if reading else 0
        self._shift_ms = history.clock_ms - read * history.tick_ms
        self._moved = reading is not None

    def learn(self, events: list[Event]) -> None:
        """Events of the reading."""
        for event in events:
            if event["type"] == "committed" and (part := next(self._parts, None)):
                self._known[event["turn"]] = part
                if part.span_ms:
                    self._spans[event["audio_start_ms"]] = part.span_ms
            elif event.get("code") == "turn_too_long":
                next(self._parts, None)

    def told(self, event: Event) -> Event:
        """An event as the client is to have it."""
        if event["type"] == "reset":  # numbers and times begin anew on both sides
            self._moved = False
        if not self._moved:
            return event
        told = {**event, **self._times(event)}
        if "turn" in event and not event.get("out_of_band"):
            told["turn"] = self._client_number(event["turn"])
        if event["type"] == "transcript":
            told["turns"] = [{**turn, **self._times(turn)} for turn in event["turns"]]
        return told

    def _times(self, event: Event) -> dict[str, int]:
        times = {name: event[name] + self._shift_ms for name in TIMES if name in event}
        if span := self._spans.get(event.get("audio_start_ms", -1)):
            times["audio_start_ms"], times["audio_end_ms"] = span
        return times

    def _client_number(self, number: int) -> int:
        if part := self._known.get(number):
            return part.number
        if number not in self._numbers:
            self._numbers[number] = max([self._history.next_number - 1, *self._numbers.values()]) + 1
        return self._numbers[number]

    def asked(self, tick: TickIn, reading: Replay | None = None) -> TickIn:
        """A tick as the server is to have it; the first one after a reading asks for what is due."""
        found = dict(tick.parameters)
        if reading and reading.is_due and not DECIDES & found.keys():
            found["respond"] = True
        if reading and reading.waiting:
            items = [*reading.waiting, *json.loads(found.get("items", "[]"))]
            found["items"] = json.dumps(items[:ITEMS_AT_ONCE])
        for name in ("truncate", "forget"):
            if self._moved and name in found:
                details = json.loads(found[name])
                details["turn"] = self._server_number(details["turn"], details.get("part", "answer"))
                found[name] = json.dumps(details)
        return TickIn.from_parameters(tick.pcm, found, self._history.tick_ms, tick.start, tick.end)

    def _server_number(self, number: int, side: str) -> int:
        for server, part in self._known.items():
            if (part.number, part.side) == (number, side):
                return server
        return next((server for server, client in self._numbers.items() if client == number), 0)


class Mover:
    """One conversation, on one server after the other."""

    def __init__(self, converse: Converse, settings: Settings):
        self._converse = converse
        self._within_s = settings.bridge.move_within_s
        self._history = ReplayLog(settings)
        self._translation = Renumbering(None, self._history)
        self._left = 0  # ticks of the reading that were not answered
        self._room = asyncio.Semaphore(READ_AT_ONCE)
        self._events: list[Event] = []  # that are told with the next answer
        self._lost_s: float | None = None  # when the server was gone

    async def converse(self, sequence_id: int, ticks: AsyncIterator[TickIn]) -> AsyncGenerator[TickOut | TickError]:
        """`Converse`, but a server that is gone is told by the events `interrupted` and `moved`.

        Raises `TickError` when no other server has read it in time, or one has and fails with the same tick.
        """
        source, reading = HandOver(ticks), None
        try:
            while True:
                self._translation, self._left = (
                    Renumbering(reading, self._history),
                    len(reading.ticks) if reading else 0,
                )
                try:
                    fed = self._fed(source, reading)
                    async with aclosing(self._converse(sequence_id, fed)) as answers:
                        async for answer in answers:
                            if told := self._told(sequence_id, answer):
                                yield told
                    return
                except TickError as error:
                    self._expect_another_try(error)
                    logger.warning(
                        "server_lost", extra={"about": {"conversation": str(sequence_id), "why": str(error)}}
                    )
                await asyncio.sleep(RETRY_S)
                reading, sequence_id = self._history.reading(), new_sequence_id()
        finally:
            source.close()

    def _told(self, sequence_id: int, answer: TickOut | TickError) -> TickOut | None:
        """What the client is to have of an answer; nothing of one to the reading. Raises the error that it is."""
        if isinstance(answer, TickError):
            raise answer
        if self._left:
            self._left -= 1
            self._room.release()
            self._translation.learn([event.to_json() for event in answer.events])
            return None
        if self._lost_s is not None:
            self._events.append(self._moved(sequence_id, self._lost_s))
            self._lost_s = None
        told = [*self._events, *(self._translation.told(event.to_json()) for event in answer.events)]
        self._events.clear()
        self._history.answer(told)
        return replace(answer, events=[event_of(event) for event in told])

    def _expect_another_try(self, error: TickError) -> None:
        """Raises the error where there is none: nothing was said yet, time is up, or it comes of what is said."""
        was_read = self._lost_s is not None and not self._left
        self._lost_s = time.monotonic() if self._lost_s is None else self._lost_s
        if not self._history.has_begun or was_read or time.monotonic() - self._lost_s > self._within_s:
            if self._history.has_begun:
                MOVED.labels("lost").inc()
            raise error
        if interrupted := self._history.give_up_answer():
            self._events.append(interrupted)

    def _moved(self, sequence_id: int, lost_s: float) -> Event:
        MOVED.labels("moved").inc()
        took_ms = round(1000 * (time.monotonic() - lost_s))
        logger.warning("moved", extra={"about": {"conversation": str(sequence_id), "took_ms": took_ms}})
        return {"type": "moved", "at_ms": self._history.clock_ms, "took_ms": took_ms}

    async def _fed(self, source: HandOver[TickIn], reading: Replay | None) -> AsyncIterator[TickIn]:
        """The reading, the ticks that were not answered, and those that come."""
        translation, first = self._translation, reading
        self._room = room = asyncio.Semaphore(READ_AT_ONCE)
        for tick in reading.ticks if reading else ():
            await room.acquire()
            yield tick
        for _ in range(READ_AT_ONCE if reading else 0):  # all is answered: the turns' numbers are known
            await room.acquire()
        reader = source.take_over()
        for tick in list(self._history.unanswered):
            yield translation.asked(tick, first)
            first = None
        async for tick in source.read(reader):
            self._history.ask(tick)
            yield translation.asked(tick, first)
            first = None
