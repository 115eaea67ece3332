"""Whether the engine answers: Triton calls itself ready while a process of its Python backend is dead or hangs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from config import Settings
from contract.errors import ErrorCode
from frontend.audio.pcm import SAMPLE_BYTES
from frontend.log import logger
from frontend.tick import TickError, TickIn, new_sequence_id
from frontend.triton import TritonLink

PULSE_S = 3.0  # without an answer to anybody, then the engine is asked
ANSWER_S = 5.0  # that it has for it
FAILURES = 2  # in a row, until it counts as dead


class HealthProbe:
    """Asks the engine for a tick of silence where nobody else has had one for a while."""

    def __init__(self, settings: Settings, link: TritonLink):
        self._link = link
        self._pcm = bytes(settings.audio.input_samples * SAMPLE_BYTES)
        self._failures = 0
        self._problem = ""

    @property
    def problem(self) -> str | None:
        """Why the engine counts as dead; None where it answers."""
        return self._problem if self._failures >= FAILURES else None

    async def watch(self) -> None:
        """Until it is cancelled."""
        while True:
            await asyncio.sleep(PULSE_S if not self._failures else 1.0)
            if time.monotonic() - self._link.answered_s < PULSE_S:
                self._note(None)
            else:
                self._note(await self._ask())

    async def _ask(self) -> str | None:
        """What is wrong; None where it answers, be it that it has no room."""
        try:
            await asyncio.wait_for(self.say(1), ANSWER_S)
        except asyncio.TimeoutError:
            return f"the engine has not answered within {ANSWER_S:g} s"
        except TickError as error:
            return None if error.code is ErrorCode.FULL else f"the engine does not answer: {error}"
        except Exception as error:  # whatever it is, it is looked at again
            return f"the engine cannot be asked: {error!r}"
        return None

    async def say(self, ticks: int) -> None:
        """A conversation of so many ticks of silence. Raises `TickError`."""
        answers = 0
        async for answer in self._link.converse(new_sequence_id(), self._silence(ticks)):
            if isinstance(answer, TickError):
                raise answer
            answers += 1
        if answers < ticks:
            raise TickError(f"{answers} answers came, expected {ticks}")

    def _note(self, problem: str | None) -> None:
        was_dead = self.problem
        self._failures = self._failures + 1 if problem else 0
        self._problem = problem or ""
        if bool(self.problem) != bool(was_dead):
            event = "engine_answers_again" if was_dead else "engine_does_not_answer"
            logger.warning(event, extra={"about": {"problem": problem} if problem else {}})

    async def _silence(self, ticks: int) -> AsyncIterator[TickIn]:
        for tick in range(ticks):
            yield TickIn(self._pcm, start=tick == 0, end=tick == ticks - 1)
