"""The Tritons behind the bridge: a conversation goes to the one with the fewest, or to another if it has no room."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from config import Settings
from contract.errors import ErrorCode
from frontend.failover.health_probe import HealthProbe
from frontend.failover.replayable import ReplayableTicks
from frontend.tick import TickError, TickIn, TickOut, new_sequence_id
from frontend.triton import EngineFacts, TritonLink

ENDS_S = 1.0  # that conversations which are ending have for it, where a newcomer waits for their slots
AGAIN_S = 0.1  # after all have refused: a bridge's own question, or one who is leaving, may have held the last slot


class Server:
    """One Triton, or several behind a balancer."""

    def __init__(self, settings: Settings, url: str):
        self.link = TritonLink(settings, url)
        self.pulse = HealthProbe(settings, self.link)
        self.facts: EngineFacts | None = None  # once it was ready
        self.conversations = 0

    @property
    def is_well(self) -> bool:
        """Whether it was ready, and answers as far as is known."""
        return self.facts is not None and self.pulse.problem is None

    async def get_ready(self, ticks: int) -> None:
        """Learns what the engine is and talks to it once. Raises whatever it fails with."""
        facts = await self.link.engine()
        await self.pulse.say(ticks)
        self.facts = facts


class Servers:
    """All of them, as one `TritonLink`."""

    def __init__(self, settings: Settings):
        replicas = settings.triton.replicas
        self._attempts = 2 * replicas if replicas > 1 else 1  # of each: a balancer may choose the full one twice
        self._replicas = replicas
        self.members = [Server(settings, url) for url in settings.triton.urls]

    @property
    def slots(self) -> int:
        """Of all; 0 while one of them has not told yet."""
        facts = [member.facts for member in self.members]
        return sum(each.slots for each in facts if each) * self._replicas if all(facts) else 0

    @property
    def problem(self) -> str | None:
        """Why no engine answers; None where one does."""
        known = [member for member in self.members if member.facts]
        return None if any(member.is_well for member in known) else next((each.pulse.problem for each in known), None)

    async def is_ready(self) -> bool:
        """Whether one of them could take a conversation."""
        return any(await asyncio.gather(*(member.link.is_ready() for member in self.members)))

    async def close(self) -> None:
        """Closes the channels."""
        await asyncio.gather(*(member.link.close() for member in self.members))

    async def converse(self, sequence_id: int, ticks: AsyncIterator[TickIn]) -> AsyncGenerator[TickOut | TickError]:
        """Answers of one conversation, one a tick and in order, until `ticks` ends; see `TritonLink.converse`.

        Before its first answer one server's refusal is not the last word: it begins anew on another, by another id, and
        once more on each a moment later.
        """
        candidates = sorted(self.members, key=lambda member: (not member.is_well, member.conversations))
        attempts = [member for member in candidates for _ in range(self._attempts)]
        given = ReplayableTicks(ticks)
        refusals: list[TickError] = []
        full: dict[Server, TickError] = {}
        try:
            for number, member in enumerate([*attempts, *attempts]):
                if number == len(attempts):
                    if not full:
                        break
                    await asyncio.gather(*(each.link.ended(ENDS_S) for each in full))
                    await asyncio.sleep(AGAIN_S)
                member.conversations += 1
                try:
                    async with aclosing(self._attempt(member, sequence_id, given)) as answers:
                        async for answer in answers:
                            yield answer
                    return
                except _RefusedError as refused:
                    refusals.append(refused.why)
                    if refused.why.code is ErrorCode.FULL:
                        full[member] = refused.why
                    sequence_id = new_sequence_id()
                finally:
                    member.conversations -= 1
            if full:
                yield next(iter(full.values()))
            else:
                raise refusals[-1]
        finally:
            given.close()

    async def _attempt(
        self, member: Server, sequence_id: int, given: ReplayableTicks[TickIn]
    ) -> AsyncGenerator[TickOut | TickError]:
        """On one server. Raises `_RefusedError` where it has no room or is not there, before its first answer."""
        try:
            async with aclosing(member.link.converse(sequence_id, given.again())) as answers:
                async for answer in answers:
                    if isinstance(answer, TickError) and answer.code is ErrorCode.FULL and not given.is_settled:
                        raise _RefusedError(answer)
                    given.settle()
                    yield answer
        except TickError as error:
            if given.is_settled:
                raise
            raise _RefusedError(error) from error


class _RefusedError(Exception):
    """A server takes no conversation now."""

    def __init__(self, why: TickError):
        super().__init__(str(why))
        self.why = why
