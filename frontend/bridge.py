"""What the bridge's routes share, and how it begins and ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from config import Settings, SettingsError
from frontend.access import Access
from frontend.admission import Admission
from frontend.failover.mover import Mover
from frontend.failover.servers import Server, Servers
from frontend.pcm16.frames import Event, ProtocolError
from frontend.pcm16.resumable_socket import ResumableSocket
from frontend.recording import recorded
from frontend.session.ended import CloseCode
from frontend.tick import TickError, TickIn, TickOut
from frontend.triton import EngineFacts

logger = logging.getLogger(__name__)
WARM_UP_TICKS = 3
RETRY_S = 1.0
WATCH_S = 0.1


class OpenConversation(Protocol):
    """A conversation of either protocol, as the bridge's end sees it."""

    async def tell(self, event: Event) -> None:
        """Says something that is not the engine's."""

    async def end(self, code: str, message: str, close_code: CloseCode) -> None:
        """Ends it, with the reason."""


class Bridge:
    """Settings, admission, access, and the link to Triton."""

    def __init__(self, settings: Settings):
        """Raises `SettingsError` where a key is needed and there is none, and for what the dialect cannot do."""
        if settings.bridge.move_within_s and settings.engine.dialect != "turn":
            raise SettingsError(
                f"bridge.move_within_s is {settings.bridge.move_within_s:g}, expected 0: "
                f"the dialect {settings.engine.dialect!r} has no turns that another server could read"
            )
        self.settings = settings
        self.access = Access(settings.bridge)
        self.admission = Admission(settings.bridge)
        self.engine = EngineFacts()
        self.open: set[OpenConversation] = set()
        self._lines: dict[str, ResumableSocket] = {}  # that a client may come back to, by their tokens
        self._not_ready: str | None = "Triton has not answered yet"

    async def connect(self) -> None:
        """Opens the gRPC channel. Must run on the event loop that will use it."""
        self.servers = Servers(self.settings)

    async def watch(self) -> None:
        """Makes the engine ready for clients, then looks whether it still answers, until it is cancelled."""
        await asyncio.gather(*(self._look_after(server) for server in self.servers.members))

    @property
    def engine_problem(self) -> str | None:
        """Why the engine counts as dead; None where it answers, or has not answered yet."""
        return None if self._not_ready else self.servers.problem

    def problem_of(self, number: int) -> str | None:
        """Why the engine of one server counts as dead."""
        return None if self._not_ready else self.servers.members[number].pulse.problem

    def has_answered_since(self, number: int, moment_s: float) -> bool:
        """Whether one server has answered a tick since a moment on the monotonic clock."""
        return self.servers.members[number].link.answered_s > moment_s

    async def _look_after(self, server: Server) -> None:
        """Waits for it, then talks to it once, so that the first tick of the first client is as fast as any."""
        while server.facts is None:
            if await server.link.is_ready():
                try:
                    await server.get_ready(WARM_UP_TICKS)
                    self.engine, self.admission.slots = server.facts or self.engine, self.servers.slots
                    self._not_ready = None
                    break
                except Exception as error:  # tried again, and /readyz tells
                    if self._not_ready:
                        self._not_ready = f"the warm-up failed: {error}"
                    logger.exception("the warm-up of %s failed", server.link.url)
            await asyncio.sleep(RETRY_S)
        await server.pulse.watch()

    async def not_ready(self) -> str | None:
        """Why no conversation could begin now; None where one could."""
        if self._not_ready:
            return self._not_ready
        if problem := self.servers.problem:
            return problem
        if not await self.servers.is_ready():
            return f"Triton at {', '.join(self.settings.triton.urls)} is not ready"
        refusal = self.admission.refusal()
        return refusal.message if refusal else None

    def converse(self, sequence_id: int, ticks: AsyncIterator[TickIn]) -> AsyncIterator[TickOut | TickError]:
        """`TritonLink.converse`, moved to another server and kept where settings say so."""
        bridge = self.settings.bridge
        converse = Mover(self.servers, self.settings).converse if bridge.move_within_s else self.servers.converse
        if bridge.record_folder:
            return recorded(converse, Path(bridge.record_folder), sequence_id, ticks)
        return converse(sequence_id, ticks)

    @contextmanager
    def resumable(self, line: ResumableSocket) -> Iterator[None]:
        """While its conversation goes on, a client may come back to it if it has a token."""
        if line.token:
            self._lines[line.token] = line
        try:
            yield
        finally:
            self._lines.pop(line.token or "", None)

    def line(self, token: str) -> ResumableSocket:
        """The line of a token. Raises `ProtocolError`."""
        if token not in self._lines:
            message = "no conversation waits for this token: it has ended, or nobody came back in bridge.resume_s"
            raise ProtocolError("cannot_resume", f"{message}; begin anew")
        return self._lines[token]

    async def drain(self) -> None:
        """Nothing new begins; returns when what is open has ended, or had `bridge.drain_s` for it and was ended."""
        self.admission.is_draining = True
        drain_s = self.settings.bridge.drain_s
        event = {"type": "draining", "seconds": drain_s}
        await asyncio.gather(*(conversation.tell(event) for conversation in self.open))
        await self._until_none_is_open(drain_s)
        message = f"the server ends; {drain_s:g} s were given (bridge.drain_s)"
        ends = [conversation.end("draining", message, CloseCode.GOING_AWAY) for conversation in self.open]
        await asyncio.gather(*ends)
        await self._until_none_is_open(self.settings.bridge.read_timeout_s)  # each closes after its last tick

    async def _until_none_is_open(self, within_s: float) -> None:
        until_s = asyncio.get_running_loop().time() + within_s
        while self.open and asyncio.get_running_loop().time() < until_s:
            await asyncio.sleep(WATCH_S)
