"""The health of an engine: Triton reports itself ready while a process of its Python backend is dead or hangs."""

from __future__ import annotations

import asyncio
import time

from contract.errors import ErrorCode
from frontend.log import logger
from frontend.server import Server
from frontend.tick import TickError

IDLE_S = 3.0  # the engine is probed after this time without an answer to any conversation
TIMEOUT_S = 5.0  # timeout of a probe
RETRY_S = 1.0  # interval of probes after a failure
MAX_FAILURES = 2  # failures in a row until the engine counts as dead


class HealthProbe:
    """Requests a tick of silence if no conversation has had an answer for a while."""

    def __init__(self, server: Server):
        self._server = server
        self._failures = 0
        self._problem = ""

    @property
    def problem(self) -> str | None:
        """The reason if the engine counts as dead."""
        return self._problem if self._failures >= MAX_FAILURES else None

    async def watch(self) -> None:
        """Probe the engine until cancelled."""
        while True:
            await asyncio.sleep(IDLE_S if not self._failures else RETRY_S)
            if time.monotonic() - self._server.link.answered_s < IDLE_S:
                self._note(None)
            else:
                self._note(await self._probe())

    async def _probe(self) -> str | None:
        """Return the problem, or None if the engine answers; a refusal as full is an answer."""
        try:
            await asyncio.wait_for(self._server.send_silence(1), TIMEOUT_S)
        except asyncio.TimeoutError:
            return f"the engine has not answered within {TIMEOUT_S:g} s"
        except TickError as error:
            return None if error.code is ErrorCode.FULL else f"the engine does not answer: {error}"
        except Exception as error:  # reported, and probed again
            return f"the engine cannot be probed: {error!r}"
        return None

    def _note(self, problem: str | None) -> None:
        before = self.problem
        self._failures = self._failures + 1 if problem else 0
        self._problem = problem or ""
        if bool(self.problem) != bool(before):
            event = "engine_answers_again" if before else "engine_does_not_answer"
            logger.warning(event, extra={"about": {"problem": problem} if problem else {}})
