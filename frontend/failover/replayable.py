"""A conversation's ticks for more than one reader in turn: a server that refused it, or is gone, and the next one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Generic, TypeVar

T = TypeVar("T")


class HandOver(Generic[T]):
    """Ticks that one reader after the other takes; what a reader did not get is for the next one."""

    def __init__(self, ticks: AsyncIterator[T]):
        self._ticks = ticks
        self._next: asyncio.Future[T] | None = None  # of who gave up waiting for it, too
        self._reader: object = None

    def take_over(self) -> object:
        """From now on no other reader gets a tick: what `read` is called with. What others have got, they have."""
        self._reader = object()
        return self._reader

    async def read(self, me: object) -> AsyncIterator[T]:
        """Those that come, until another takes over. A waiting that is cancelled loses none."""
        while self._reader is me:
            self._next = self._next or asyncio.ensure_future(anext(self._ticks))
            try:
                tick = await asyncio.shield(self._next)
            except StopAsyncIteration:
                return
            if self._reader is not me:
                return
            self._next = None
            yield tick

    def close(self) -> None:
        """Nobody waits for a tick any more."""
        if self._next:
            self._next.cancel()


class ReplayableTicks(Generic[T]):
    """A conversation's ticks, which are given again from the first on until it has been answered."""

    def __init__(self, ticks: AsyncIterator[T]):
        self._shared = HandOver(ticks)
        self._kept: list[T] = []
        self.is_settled = False

    def settle(self) -> None:
        """They are not wanted again."""
        self.is_settled = True
        self._kept.clear()

    async def again(self) -> AsyncIterator[T]:
        """The ticks so far, and those that come."""
        reader = self._shared.take_over()
        for tick in list(self._kept):
            yield tick
        async for tick in self._shared.read(reader):
            if not self.is_settled:
                self._kept.append(tick)
            yield tick

    def close(self) -> None:
        """Nobody waits for a tick any more."""
        self._shared.close()
