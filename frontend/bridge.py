"""The state that the bridge's routes share, and the bridge's beginning and end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from config import Settings
from contract.errors import ErrorCode
from frontend.access import Access
from frontend.admission import Admission, Reservation
from frontend.plugins import Plugins
from frontend.session.ended import Ended
from frontend.session.session import EngineSession
from frontend.tick import Converse, TickError, TickIn, TickOut

WATCH_S = 0.1


class OpenConversation(Protocol):
    """A conversation of any protocol."""

    async def run(self) -> None:
        """Serve the client until the conversation is over and its channel is closed."""

    async def notify(self, event: Mapping[str, Any]) -> None:
        """Send an event of the bridge."""

    async def end(self, ended: Ended) -> None:
        """End the conversation."""


class Bridge:
    """Settings, access, admission, the engine, and the open conversations."""

    def __init__(self, settings: Settings, plugins: Plugins | None = None):
        """Raise `SettingsError` if a key is required and none is configured."""
        self.settings, self._plugins = settings, plugins or Plugins()
        self.access = Access(settings.bridge)
        self.engine = self._plugins.engine(settings, self._plugins.tracer)
        self.admission = Admission(settings.bridge, lambda: self.engine.slots)
        self.open: set[OpenConversation] = set()

    def session(self, reservation: Reservation, protocol: str, name: str = "") -> EngineSession:
        """Return the session of a new conversation; see `EngineSession`."""
        tracer = self._plugins.tracer
        return EngineSession(self.settings.bridge, self.converse, reservation, protocol, name, tracer)

    def converse(self, sequence_id: int, ticks: AsyncIterator[TickIn]) -> AsyncGenerator[TickOut | TickError]:
        """Yield the engine's answers of one conversation, through all decorators; see `TritonLink.converse`."""
        converse: Converse = self.engine.converse
        for decorate in self._plugins.decorators:
            converse = decorate(converse)
        return converse(sequence_id, ticks)

    async def not_ready(self) -> str | None:
        """Return the reason if no conversation can begin now."""
        refusal = self.admission.refusal()
        return await self.engine.not_ready() or (refusal.message if refusal else None)

    @contextmanager
    def opened(self, conversation: OpenConversation) -> Iterator[None]:
        """Count a conversation as open inside of the context."""
        self.open.add(conversation)
        try:
            yield
        finally:
            self.open.discard(conversation)

    async def drain(self) -> None:
        """Refuse new conversations; returns when the open ones have ended, or were ended after `bridge.drain_s`."""
        self.admission.is_draining = True
        drain_s = self.settings.bridge.drain_s
        event = {"type": "draining", "seconds": drain_s}
        await asyncio.gather(*(conversation.notify(event) for conversation in self.open))
        await self._until_none_is_open(drain_s)
        message = f"the server ends; {drain_s:g} s were given (bridge.drain_s)"
        ended = Ended.of_error(ErrorCode.DRAINING, message)
        await asyncio.gather(*(conversation.end(ended) for conversation in self.open))
        await self._until_none_is_open(self.settings.bridge.read_timeout_s)  # each closes after its last tick

    async def close(self) -> None:
        """Close what the optional parts have opened, then the channels to the engine."""
        for close in reversed(self._plugins.closers):
            await close()
        await self.engine.close()

    async def _until_none_is_open(self, within_s: float) -> None:
        until_s = asyncio.get_running_loop().time() + within_s
        while self.open and asyncio.get_running_loop().time() < until_s:
            await asyncio.sleep(WATCH_S)
