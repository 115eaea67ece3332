"""Moves of a conversation whose server is lost to another server, which learns it by a replay."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import replace

from config import Settings
from contract.controls import DECIDES_ANSWER, Controls, ForgetControl, Part
from contract.events import Event, Moved, StateChanged
from contract.parameters import MAX_ITEMS, REPORT_STATE, parameters_of
from frontend.failover.renumbering import Renumbering
from frontend.failover.replay_log import Replay, ReplayLog
from frontend.failover.replayable import HandOver
from frontend.log import logger
from frontend.metrics import MOVED
from frontend.tick import Converse, TickError, TickIn, TickOut, new_sequence_id

RETRY_S = 0.5
REPLAY_IN_FLIGHT = 8  # ticks of a replay in flight


class Mover:
    """One conversation, on one server after the other."""

    def __init__(self, converse: Converse, settings: Settings):
        self._converse = converse
        self._within_s = settings.bridge.move_within_s
        self._log = ReplayLog(settings)
        self._renumbering = Renumbering()
        self._replaying = 0  # ticks of the replay without an answer
        self._places = asyncio.Semaphore(REPLAY_IN_FLIGHT)
        self._events: list[Event] = []  # events for the client, sent with the next answer
        self._lost_s: float | None = None  # time at which the server was lost

    async def converse(self, sequence_id: int, ticks: AsyncIterator[TickIn]) -> AsyncGenerator[TickOut | TickError]:
        """Yield the answers of one conversation; the client learns of a lost server by `interrupted` and `moved`.

        Raises `TickError` if no other server has learned the conversation in time, or if one has and fails with the
        same tick.
        """
        source: HandOver[TickIn] = HandOver(ticks)
        replay: Replay | None = None
        try:
            while True:
                try:
                    async with aclosing(self._converse(sequence_id, self._feed(source, replay))) as answers:
                        async for answer in answers:
                            if found := self._answer(sequence_id, answer):
                                yield found
                    return
                except TickError as error:
                    self._expect_another_try(error)
                    about = {"conversation": str(sequence_id), "why": str(error)}
                    logger.warning("server_lost", extra={"about": about})
                await asyncio.sleep(RETRY_S)
                log, sequence_id = self._log, new_sequence_id()
                replay = log.replay()
                self._renumbering = Renumbering(replay, log.state, log.clock_ms, log.tick_ms)
                self._replaying = len(replay.ticks)
        finally:
            source.close()

    def _answer(self, sequence_id: int, answer: TickOut | TickError) -> TickOut | None:
        """Return the answer for the client; None for an answer to the replay. Raises the error that it is."""
        if isinstance(answer, TickError):
            raise answer
        if self._replaying:
            self._replaying -= 1
            self._places.release()
            self._renumbering.learn(answer.events)
            return None
        state = None
        if self._lost_s is not None:
            state = self._renumbering.client_state(self._renumbering.state)
            self._events.append(self._moved(sequence_id, self._lost_s))
            self._lost_s = None
        found = [*self._events, *map(self._renumbering.to_client, answer.events)]
        self._events.clear()
        for event in found:
            state = event.state if isinstance(event, StateChanged) else state
        found = [event for event in found if not isinstance(event, StateChanged)]
        self._log.answered(found, state)
        return replace(answer, events=found)

    def _expect_another_try(self, error: TickError) -> None:
        """Raise the error if a move is impossible, too late, or in vain because the same tick has failed again."""
        has_failed_again = self._lost_s is not None and not self._replaying
        self._lost_s = time.monotonic() if self._lost_s is None else self._lost_s
        if self._log.state is None or has_failed_again or time.monotonic() - self._lost_s > self._within_s:
            if self._log.state is not None:
                MOVED.labels("lost").inc()
            raise error
        if interrupted := self._log.give_up_answer():
            self._events.append(interrupted)

    def _moved(self, sequence_id: int, lost_s: float) -> Event:
        MOVED.labels("moved").inc()
        took_ms = round(1000 * (time.monotonic() - lost_s))
        logger.warning("moved", extra={"about": {"conversation": str(sequence_id), "took_ms": took_ms}})
        return Moved(at_ms=self._log.clock_ms, took_ms=took_ms)

    async def _feed(self, source: HandOver[TickIn], replay: Replay | None) -> AsyncIterator[TickIn]:
        """Yield the replay, the ticks without an answer, and new ticks."""
        if replay:
            async for tick in self._replay(replay):
                yield tick
        renumbering, first = self._renumbering, replay
        token = source.take_over()
        for tick in list(self._log.unanswered):
            yield _sent(tick, renumbering, first)
            first = None
        async for tick in source.read(token):
            self._log.sent(tick)
            yield _sent(tick, renumbering, first)
            first = None

    async def _replay(self, replay: Replay) -> AsyncIterator[TickIn]:
        """Yield the ticks of a replay; ends when all are answered: the server's turn numbers are known."""
        self._places = places = asyncio.Semaphore(REPLAY_IN_FLIGHT)
        *ticks, last = replay.ticks
        for tick in ticks:
            await places.acquire()
            yield tick
        for _ in range(REPLAY_IN_FLIGHT):
            await places.acquire()
        if replay.ignores_speech and (turn := self._renumbering.unknown_turn):
            last = replace(last, controls=replace(last.controls, forget=ForgetControl(turn, Part.USER)))
        yield last
        await places.acquire()


def _sent(tick: TickIn, renumbering: Renumbering, replay: Replay | None) -> TickIn:
    """Return a client's tick for the server; the first one after a replay requests what is due."""
    options = {**tick.options, REPORT_STATE: True} if tick.start else tick.options
    controls = renumbering.to_server(tick.controls)
    if replay:
        controls = replace(controls, items=(*replay.items, *controls.items)[:MAX_ITEMS])
        if replay.respond and not _decides_answer(controls):
            controls = replace(controls, respond=True)
    return replace(tick, options=options, controls=controls)


def _decides_answer(controls: Controls) -> bool:
    return bool(DECIDES_ANSWER & parameters_of(controls).keys())
