"""One conversation with the engine, the same under every protocol."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol

from config.bridge import BridgeSettings
from contract.events import AnswerStarted, Committed, Event, Reset
from frontend.admission import Reservation
from frontend.log import Journal
from frontend.metrics import RESPONSE
from frontend.session.ended import CLIENT_LEFT, FAILED, Ended
from frontend.tick import Converse, TickError, TickIn, TickOut, new_sequence_id
from frontend.tracer import Span, Tracer


class Client(Protocol):
    """The protocol's side of a conversation: what the session requires of it."""

    def ticks(self) -> AsyncIterator[TickIn]:
        """Yield the client's ticks when they are due."""

    async def deliver(self, tick: TickOut, sent: TickIn) -> None:
        """Send the answer to the tick `sent` to the client."""

    async def end(self, ended: Ended) -> None:
        """End the conversation; the client receives the error, if there is one."""


class EngineSession:
    """The stream to the engine, the ticks in flight, the reservation, the limits, the journal, and the end."""

    def __init__(
        self,
        settings: BridgeSettings,
        converse: Converse,
        reservation: Reservation,
        protocol: str,
        name: str = "",
        tracer: Tracer | None = None,
    ):
        """Begin a conversation; `name` is its id in the log, the sequence id by default."""
        self.sequence_id = new_sequence_id()
        self.tick_s: float | None = None  # duration of the latest tick, from request to response
        self.ticks = 0  # ticks sent
        self.answers = 0  # answers begun
        self.over = asyncio.Event()  # set with the reason of the end
        self.expected_end = CLIENT_LEFT  # the reason of the end, unless `end` sets another
        self._ended: Ended | None = None
        self._converse, self._reservation = converse, reservation
        self._tracer = tracer or Tracer()
        self._expires_s = time.monotonic() + settings.conversation_s
        self._places = asyncio.Semaphore(settings.ticks_in_flight)
        self._in_flight: deque[TickIn] = deque()
        self._answered = asyncio.Event()
        self._committed: tuple[float, Span] | None = None  # time of a commit, and the span until its answer begins
        self.journal = Journal(protocol, name or str(self.sequence_id), reservation.caller.name, self._tracer)

    @property
    def ended(self) -> Ended:
        """The reason of the end."""
        return self._ended or self.expected_end

    @property
    def remaining_s(self) -> float:
        """Seconds until the conversation's longest duration is over."""
        return self._expires_s - time.monotonic()

    def end(self, ended: Ended) -> bool:
        """Set the reason of the end, once; returns whether this call has set the reason."""
        if self._ended is not None:
            return False
        self._ended = ended
        self.over.set()
        return True

    def reserve(self) -> None:
        """Take the conversation's place in the engine, if it has none. Raises `RefusedError`."""
        self._reservation.take()

    async def ready(self) -> None:
        """Return when one more tick may be in flight; call before each tick."""
        await self._places.acquire()

    async def answered(self) -> None:
        """Return when no tick is in flight."""
        while self._in_flight:
            self._answered.clear()
            await self._answered.wait()

    async def run(self, client: Client) -> None:
        """Exchange ticks between client and engine, until the client's ticks end or the engine fails one."""
        try:
            with self.journal.traced():
                async for answer in self._converse(self.sequence_id, self._sent(client.ticks())):
                    self._places.release()
                    await self._answer(client, answer)
                    self._in_flight.popleft()
                    self._answered.set()
        except TickError as error:
            await client.end(Ended.of_tick(error))
        except Exception:
            self.journal.failed()
            await client.end(FAILED)

    def leave(self) -> None:
        """Release the place in the engine. Call before the client learns of the end: it may connect again at once."""
        self._reservation.leave()

    def close(self, **about: Any) -> None:
        """Write the end into the journal."""
        self.journal.ended(self.ended.why, **about)

    async def _sent(self, ticks: AsyncIterator[TickIn]) -> AsyncIterator[TickIn]:
        async for tick in ticks:
            self._in_flight.append(tick)
            self.ticks += 1
            yield tick

    async def _answer(self, client: Client, answer: TickOut | TickError) -> None:
        if isinstance(answer, TickError):
            await client.end(Ended.of_tick(answer))
            return
        self.tick_s = answer.took_s
        self._measure(answer.events)
        await client.deliver(answer, self._in_flight[0])

    def _measure(self, events: Sequence[Event]) -> None:
        """Measure the time from a commit to the beginning of its answer."""
        for event in events:
            if isinstance(event, Committed):
                self._committed = time.monotonic(), self._tracer.begin("response")
            elif isinstance(event, AnswerStarted) and not event.out_of_band:
                self.answers += 1
                if self._committed:
                    RESPONSE.observe(time.monotonic() - self._committed[0])
                    self._committed[1].end()
            if isinstance(event, (AnswerStarted, Reset)):
                self._committed = None
