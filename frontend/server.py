"""One Triton server: its link, the properties of its engine, and the warm-up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

from config import Settings
from frontend.audio.pcm import SAMPLE_BYTES
from frontend.log import logger
from frontend.tick import TickError, TickIn, TickOut, new_sequence_id
from frontend.tracer import Tracer
from frontend.triton import EngineFacts, TritonLink

WARM_UP_TICKS = 3
RETRY_S = 1.0  # pause between two attempts to reach the server
ENDS_S = 1.0  # time in which ending conversations must free their slots for a new one


class Server:
    """A Triton server, or several behind a load balancer. It is the whole engine of a bridge without failover."""

    def __init__(self, settings: Settings, tracer: Tracer, url: str = ""):
        """Use a gRPC endpoint; default: the first of `settings.triton.urls`."""
        self.link = TritonLink(settings, url, tracer)
        self.facts: EngineFacts | None = None  # None: the server has not been ready
        self.conversations = 0
        self._silence = bytes(settings.audio.input_samples * SAMPLE_BYTES)
        self._not_ready: str | None = "Triton has not answered yet"

    @property
    def slots(self) -> int:
        """Capacity in conversations; 0: unknown."""
        return self.facts.slots if self.facts else 0

    @property
    def voices(self) -> tuple[str, ...]:
        """Names of the checkpoint's voices; empty until the server has been ready."""
        return self.facts.voices if self.facts else ()

    @property
    def problem(self) -> str | None:
        """The reason if the engine counts as dead: only a health probe detects it."""
        return None

    def problem_of(self, number: int) -> str | None:
        """Return the reason if the engine of server `number` counts as dead."""
        return None

    def has_answered_since(self, number: int, moment_s: float) -> bool:
        """Return whether server `number` has answered a tick since a time on the monotonic clock."""
        return self.link.answered_s > moment_s

    async def not_ready(self) -> str | None:
        """Return the reason if no conversation can begin now."""
        if self._not_ready:
            return self._not_ready
        return None if await self.link.is_ready() else f"Triton at {self.link.url} is not ready"

    async def watch(self) -> None:
        """Warm the engine up, so that the first tick of the first client is as fast as any other."""
        while self.facts is None:
            if await self.link.is_ready():
                try:
                    facts = await self.link.engine()
                    await self.send_silence(WARM_UP_TICKS)
                    self.facts, self._not_ready = facts, None
                    return
                except Exception as error:  # reported by /readyz, and tried again
                    self._not_ready = f"the warm-up failed: {error}"
                    logger.exception("the warm-up of %s failed", self.link.url)
            await asyncio.sleep(RETRY_S)

    async def send_silence(self, ticks: int) -> None:
        """Hold a conversation of `ticks` ticks of silence. Raises `TickError`."""

        async def silence() -> AsyncIterator[TickIn]:
            for tick in range(ticks):
                yield TickIn(self._silence, start=tick == 0, end=tick == ticks - 1)

        answers = 0
        async for answer in self.link.converse(new_sequence_id(), silence()):
            if isinstance(answer, TickError):
                raise answer
            answers += 1
        if answers < ticks:
            raise TickError(f"expected {ticks} answers, got {answers}")

    async def converse(self, sequence_id: int, ticks: AsyncIterator[TickIn]) -> AsyncGenerator[TickOut | TickError]:
        """Yield the answers of one conversation; see `TritonLink.converse`."""
        if 0 < self.slots <= self.conversations:
            await self.link.ended(ENDS_S)
        self.conversations += 1
        try:
            async for answer in self.link.converse(sequence_id, ticks):
                yield answer
        finally:
            self.conversations -= 1

    async def close(self) -> None:
        """Close the channel."""
        await self.link.close()
