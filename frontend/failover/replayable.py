"""The ticks of a conversation for several readers in turn: a server that refuses or is lost, and the next one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Generic, TypeVar

T = TypeVar("T")


class HandOver(Generic[T]):
    """Ticks that one reader after the other takes; the next reader receives the ticks that a reader has not taken."""

    def __init__(self, ticks: AsyncIterator[T]):
        self._ticks = ticks
        self._next: asyncio.Future[T] | None = None  # the next tick, also after a reader has stopped waiting for it
        self._reader: object = None

    def take_over(self) -> object:
        """Make the caller the only reader; returns its token for `read`. Ticks that others have taken stay taken."""
        self._reader = object()
        return self._reader

    async def read(self, token: object) -> AsyncIterator[T]:
        """Yield ticks until another reader takes over. A wait that is cancelled loses no tick."""
        while self._reader is token:
            self._next = self._next or asyncio.ensure_future(anext(self._ticks))
            try:
                tick = await asyncio.shield(self._next)
            except StopAsyncIteration:
                return
            if self._reader is not token:
                return
            self._next = None
            yield tick

    def close(self) -> None:
        """Stop to wait for a tick."""
        if self._next:
            self._next.cancel()


class ReplayableTicks(Generic[T]):
    """The ticks of a conversation, which each reader receives from the first one, until `settle`."""

    def __init__(self, ticks: AsyncIterator[T]):
        self._hand_over = HandOver(ticks)
        self._kept: list[T] = []
        self.is_settled = False

    def settle(self) -> None:
        """Keep no more ticks: a server has answered."""
        self.is_settled = True
        self._kept.clear()

    async def replay(self) -> AsyncIterator[T]:
        """Yield the kept ticks, then new ones."""
        token = self._hand_over.take_over()
        for tick in list(self._kept):
            yield tick
        async for tick in self._hand_over.read(token):
            if not self.is_settled:
                self._kept.append(tick)
            yield tick

    def close(self) -> None:
        """Stop to wait for a tick."""
        self._hand_over.close()
