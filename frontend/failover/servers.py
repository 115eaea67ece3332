"""Several Triton servers as one engine: a conversation goes to the one with the fewest, or to another if it is full."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from config import Settings
from contract.errors import ErrorCode
from frontend.failover.health_probe import HealthProbe
from frontend.failover.replayable import ReplayableTicks
from frontend.server import ENDS_S, Server
from frontend.tick import TickError, TickIn, TickOut, new_sequence_id
from frontend.tracer import Tracer

PAUSE_S = 0.1  # pause before the second round: a health probe or an ending conversation may have held the last slot


class Member(Server):
    """One of the servers, with its health probe."""

    def __init__(self, settings: Settings, tracer: Tracer, url: str):
        super().__init__(settings, tracer, url)
        self.probe = HealthProbe(self)

    @property
    def problem(self) -> str | None:
        """The reason if the engine counts as dead."""
        return self.probe.problem

    @property
    def is_well(self) -> bool:
        """True if the engine has been ready and does not count as dead."""
        return self.facts is not None and self.problem is None

    async def watch(self) -> None:
        """Warm the engine up, then probe it until cancelled."""
        await super().watch()
        await self.probe.watch()


class Servers:
    """The engine of a bridge with several servers, or with one that is probed."""

    def __init__(self, settings: Settings, tracer: Tracer):
        self._urls, self._replicas = settings.triton.urls, settings.triton.replicas
        self._attempts = 2 * self._replicas if self._replicas > 1 else 1  # a balancer may choose the full one twice
        self.members = [Member(settings, tracer, url) for url in self._urls]

    @property
    def _known(self) -> list[Member]:
        return [member for member in self.members if member.facts]

    @property
    def slots(self) -> int:
        """Capacity of all servers in conversations; 0: unknown, because one has not been ready."""
        slots = [member.slots for member in self.members]
        return sum(slots) * self._replicas if len(self._known) == len(self.members) else 0

    @property
    def voices(self) -> tuple[str, ...]:
        """Names of the checkpoint's voices; empty until a server has been ready."""
        return self._known[-1].voices if self._known else ()

    @property
    def problem(self) -> str | None:
        """The reason if no engine answers."""
        known = self._known
        return None if any(member.is_well for member in known) else next((each.problem for each in known), None)

    def problem_of(self, number: int) -> str | None:
        """Return the reason if the engine of server `number` counts as dead."""
        return self.members[number].problem if self._known else None

    def has_answered_since(self, number: int, moment_s: float) -> bool:
        """Return whether server `number` has answered a tick since a time on the monotonic clock."""
        return self.members[number].has_answered_since(0, moment_s)

    async def not_ready(self) -> str | None:
        """Return the reason if no conversation can begin now."""
        if self.problem:
            return self.problem
        reasons = await asyncio.gather(*(member.not_ready() for member in self.members))
        if not all(reasons):
            return None
        return f"Triton at {', '.join(self._urls)} is not ready" if self._known else reasons[0]

    async def watch(self) -> None:
        """Warm all engines up, then probe them until cancelled."""
        await asyncio.gather(*(member.watch() for member in self.members))

    async def close(self) -> None:
        """Close all channels."""
        await asyncio.gather(*(member.close() for member in self.members))

    async def converse(self, sequence_id: int, ticks: AsyncIterator[TickIn]) -> AsyncGenerator[TickOut | TickError]:
        """Yield the answers of one conversation; see `TritonLink.converse`.

        Until the first answer, a conversation that a server refuses begins again on the others, with other ids, in two
        rounds.
        """
        replayable = ReplayableTicks(ticks)
        refusals: list[TickError] = []
        full: dict[Member, TickError] = {}
        try:
            async for member in self._candidates(full):
                member.conversations += 1
                try:
                    async with aclosing(self._attempt(member, sequence_id, replayable)) as answers:
                        async for answer in answers:
                            yield answer
                    return
                except _RefusedError as refused:
                    refusals.append(refused.reason)
                    if refused.reason.code is ErrorCode.FULL:
                        full[member] = refused.reason
                    sequence_id = new_sequence_id()
                finally:
                    member.conversations -= 1
            if not full:
                raise refusals[-1]
            yield next(iter(full.values()))
        finally:
            replayable.close()

    async def _candidates(self, full: dict[Member, TickError]) -> AsyncIterator[Member]:
        """Yield servers to try; those of a second round only if one was full, once ending conversations have ended."""
        ordered = sorted(self.members, key=lambda member: (not member.is_well, member.conversations))
        attempts = [member for member in ordered for _ in range(self._attempts)]
        for member in attempts:
            yield member
        if full:
            await asyncio.gather(*(member.link.ended(ENDS_S) for member in full))
            await asyncio.sleep(PAUSE_S)
            for member in attempts:
                yield member

    async def _attempt(
        self, member: Member, sequence_id: int, replayable: ReplayableTicks[TickIn]
    ) -> AsyncGenerator[TickOut | TickError]:
        """Converse with one server. Raises `_RefusedError` if it is full or lost before its first answer."""
        try:
            async with aclosing(member.link.converse(sequence_id, replayable.replay())) as answers:
                async for answer in answers:
                    is_full = isinstance(answer, TickError) and answer.code is ErrorCode.FULL
                    if isinstance(answer, TickError) and is_full and not replayable.is_settled:
                        raise _RefusedError(answer)
                    replayable.settle()
                    yield answer
        except TickError as error:
            if replayable.is_settled:
                raise
            raise _RefusedError(error) from error


class _RefusedError(Exception):
    """A server takes no conversation now."""

    def __init__(self, reason: TickError):
        super().__init__(str(reason))
        self.reason = reason
