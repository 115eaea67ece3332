"""Ticks for several readers in turn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from frontend.failover.replayable import ReplayableTicks


def test_tick_that_arrives_during_a_replay_is_not_lost():
    """The server that refused still waits for the next tick."""

    async def check() -> None:
        source: asyncio.Queue[int] = asyncio.Queue()

        async def ticks() -> AsyncIterator[int]:
            while True:
                yield await source.get()

        given = ReplayableTicks(ticks())
        refused, seen = given.replay(), []
        for number in (1, 2):
            source.put_nowait(number)
            seen.append(await anext(refused))
        waiting = asyncio.ensure_future(anext(refused, None))
        await asyncio.sleep(0)
        other = given.replay()
        got = [await anext(other)]
        source.put_nowait(3)
        await asyncio.sleep(0.01)
        source.put_nowait(4)
        got += [await anext(other) for _ in range(3)]
        assert got == [1, 2, 3, 4]
        assert await waiting is None
        given.close()

    asyncio.run(asyncio.wait_for(check(), 5))
