"""Ticks that were on their way to a server that refused the conversation, for the next one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Generic, TypeVar

T = TypeVar("T")


class FromTheFirst(Generic[T]):
    """A conversation's ticks, which are given again from the first on until it has been answered."""

    def __init__(self, ticks: AsyncIterator[T]):
        self._ticks = ticks
        self._kept: list[T] = []
        self._next: asyncio.Future[T] | None = None  # of who gave up waiting for it, too
        self.is_settled = False

    def settle(self) -> None:
        """They are not wanted again."""
        self.is_settled = True
        self._kept.clear()

    async def again(self) -> AsyncIterator[T]:
        """The ticks so far, and those that come. A waiting that is cancelled loses none."""
        for tick in list(self._kept):
            yield tick
        while True:
            self._next = self._next or asyncio.ensure_future(anext(self._ticks))
            try:
                tick = await asyncio.shield(self._next)
            except StopAsyncIteration:
                return
            self._next = None
            if not self.is_settled:
                self._kept.append(tick)
            yield tick

    def close(self) -> None:
        """Nobody waits for a tick any more."""
        if self._next:
            self._next.cancel()
