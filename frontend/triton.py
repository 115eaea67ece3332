"""Ticks of a conversation over one gRPC stream to Triton."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import secrets
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import tritonclient.grpc.aio as triton
from tritonclient.utils import InferenceServerException

from config import Settings
from frontend import traces
from frontend.metrics import TICK
from frontend.session.ended import CloseCode

logger = logging.getLogger(__name__)
MODEL = "duplex"
ENGINE = "thinker_talker"  # the stage that holds the conversations
PREFIX = f"in ensemble '{MODEL}', "  # of Triton's messages; a client knows of no ensemble
GREATEST_SEQUENCE_ID = 2**63 - 1  # tritonclient sends it as an int64
END_TIMEOUT_S = 5.0
FACT_TIMEOUT_S = 2.0  # for an answer that costs nothing
CHANNEL = [
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 2000),  # of its own it waits up to two minutes for a Triton that is back
]
WATCH_S = 0.5  # how often an overdue answer is looked for
CONVERSATION = "sca-conversation"  # the header by which a balancer keeps a conversation on one replica
FULL = "try again later"  # how the engine's refusals of one conversation too many end
LONG_PROMPT = "system_prompt is "  # and how that of a prompt of too many tokens begins


class TickError(RuntimeError):
    """Triton refused a tick, is late with one, or is not there; the message says why."""

    @property
    def is_full(self) -> bool:
        """Whether the engine has no room for one more conversation."""
        return str(self).endswith(FULL)

    @property
    def is_long_prompt(self) -> bool:
        """Whether the system prompt has more tokens than the engine takes, which only the engine can count."""
        return str(self).startswith(LONG_PROMPT)

    @property
    def end(self) -> tuple[str, CloseCode]:
        """Why a conversation ends with it, in one word, and the close code of its WebSocket."""
        if self.is_full:
            return "full", CloseCode.TRY_AGAIN_LATER
        if self.is_long_prompt:
            return "bad_option", CloseCode.POLICY_VIOLATION
        return "tick_failed", CloseCode.INTERNAL_ERROR


def new_sequence_id() -> int:
    """A conversation's id: random, never 0."""
    return secrets.randbelow(GREATEST_SEQUENCE_ID) + 1


@dataclass(frozen=True)
class TickIn:
    """One tick of the microphone."""

    pcm: bytes
    start: bool = False
    end: bool = False
    parameters: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TickOut:
    """One tick of the loudspeaker."""

    pcm: bytes
    text: str
    events: list[dict[str, Any]]
    took_s: float = 0.0  # from the request to the response


@dataclass
class _Progress:
    """How far a conversation's requests have come."""

    started: bool = False
    ended: bool = False
    leaves: bool = False  # nobody asks for more: no tick is sent any more
    waiting: asyncio.Future[Any] | None = None  # for the next response


@dataclass(frozen=True)
class EngineFacts:
    """What the bridge has to know of the engine."""

    slots: int = 0  # conversations that it holds; 0: it measures that itself
    voices: tuple[str, ...] = ()


class TritonLink:
    """A connection to Triton."""

    def __init__(self, settings: Settings, url: str = ""):
        """`url`: of one that is not the settings' first."""
        self.url = url or settings.triton.urls[0]
        self._samples = settings.audio.input_samples
        self._timeout_s = settings.bridge.response_timeout_s
        self._client = triton.InferenceServerClient(self.url, channel_args=CHANNEL)
        self.answered_s = -math.inf  # when Triton answered a tick last
        self._ending: set[asyncio.Task[None]] = set()  # conversations whose END is on its way by itself

    async def is_ready(self) -> bool:
        """Whether Triton is up and every stage of the ensemble is loaded."""
        try:
            return bool(await self._client.is_model_ready(MODEL, client_timeout=FACT_TIMEOUT_S))
        except (InferenceServerException, grpc.RpcError):
            return False

    async def engine(self) -> EngineFacts:
        """What the engine behind Triton is, by its model's config."""
        answer = await self._client.get_model_config(ENGINE, client_timeout=FACT_TIMEOUT_S)
        parameters = answer.config.parameters
        settings = json.loads(parameters["settings"].string_value)
        return EngineFacts(int(settings["engine"]["slots"]), tuple(json.loads(parameters["voices"].string_value)))

    async def converse(self, sequence_id: int, ticks: AsyncIterator[TickIn]) -> AsyncGenerator[TickOut | TickError]:
        """Answers of one conversation, one a tick and in order, until `ticks` ends.

        A tick that Triton refuses is answered with its `TickError`; the stream goes on. Raises `TickError` when there
        is no Triton any more, or when an answer is overdue. However it ends, Triton gets an END.
        """
        sent: deque[float] = deque()  # when each tick on its way was sent
        failures: list[Exception] = []
        progress = _Progress()
        responses = self._client.stream_infer(
            self._requests(sequence_id, ticks, sent, failures, progress), headers=headers_of(sequence_id)
        )
        try:
            while True:
                try:
                    result, error = await self._next(responses, sent, failures, progress)
                except StopAsyncIteration:
                    return
                took_s = time.monotonic() - sent.popleft()
                TICK.observe(took_s)
                if not error:
                    self.answered_s = time.monotonic()
                yield TickError(error.message().removeprefix(PREFIX)) if error else _tick_out(result, took_s)
        except grpc.aio.AioRpcError as error:
            raise TickError(f"Triton at {self.url} does not answer: {error.details()}") from error
        finally:
            progress.leaves = True
            ending = asyncio.create_task(self._leave(sequence_id, responses, sent, progress))
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)

    async def ended(self, within_s: float = END_TIMEOUT_S) -> None:
        """Returns when conversations that were cut off have been ended, or had their time for it."""
        if self._ending:
            await asyncio.wait(set(self._ending), timeout=within_s)

    async def close(self) -> None:
        """Closes the channel, when conversations that were cut off have been ended."""
        await self.ended()
        await self._client.close()

    async def _leave(self, sequence_id: int, responses: Any, sent: deque[float], progress: _Progress) -> None:
        """Takes the answers to the ticks that are on their way, then sees that the conversation has an END.

        An END that came beside them could overtake them, and Triton cancels it together with them: the slot would idle.
        """
        while sent and await self._has_come(responses, progress):
            sent.popleft()
        if progress.waiting:
            progress.waiting.cancel()
        responses.cancel()
        if progress.started and not progress.ended:
            await self._end(sequence_id)

    async def _has_come(self, responses: Any, progress: _Progress) -> bool:
        """Whether one more response came in time."""
        waiting = progress.waiting or asyncio.ensure_future(anext(responses))
        progress.waiting = None
        await asyncio.wait({waiting}, timeout=END_TIMEOUT_S)
        if not waiting.done():
            waiting.cancel()
            return False
        return not waiting.cancelled() and waiting.exception() is None

    async def _end(self, sequence_id: int) -> None:
        """An END outside the conversation's stream, which was cut off before it: else its slot would idle."""
        audio = triton.InferInput("AUDIO_IN", [1, self._samples], "INT16")
        audio.set_data_from_numpy(np.zeros((1, self._samples), np.int16))
        try:
            await self._client.infer(
                MODEL,
                [audio],
                sequence_id=sequence_id,
                sequence_end=True,
                headers=headers_of(sequence_id),
                client_timeout=END_TIMEOUT_S,
            )
        except (InferenceServerException, grpc.RpcError) as error:  # it has ended there already, or Triton is gone
            logger.info("conversation %s could not be ended: %s", sequence_id, error)

    async def _next(self, responses: Any, sent: deque[float], failures: list[Exception], progress: _Progress) -> Any:
        """The next response, unless the oldest tick on its way has waited for too long."""
        progress.waiting = waiting = asyncio.ensure_future(anext(responses))
        while not (await asyncio.wait({waiting}, timeout=WATCH_S))[0]:
            if sent and time.monotonic() - sent[0] > self._timeout_s:
                raise TickError(f"a tick has waited {self._timeout_s:g} s for its answer (bridge.response_timeout_s)")
        progress.waiting = None
        if waiting.cancelled():  # gRPC cancels a call whose requests fail, and keeps the reason to itself
            raise failures[0] if failures else TickError(f"the stream to Triton at {self.url} was cut off")
        return waiting.result()

    async def _requests(
        self,
        sequence_id: int,
        ticks: AsyncIterator[TickIn],
        sent: deque[float],
        failures: list[Exception],
        progress: _Progress,
    ) -> AsyncIterator[dict[str, Any]]:
        try:
            async for tick in ticks:
                if progress.leaves:
                    return
                audio = triton.InferInput("AUDIO_IN", [1, self._samples], "INT16")
                audio.set_data_from_numpy(np.frombuffer(tick.pcm, np.int16)[None])
                sent.append(time.monotonic())
                progress.started = True
                yield {
                    "model_name": MODEL,
                    "inputs": [audio],
                    "sequence_id": sequence_id,
                    "sequence_start": tick.start,
                    "sequence_end": tick.end,
                    "parameters": tick.parameters or None,
                }
                progress.ended = tick.end  # the stream has taken it
        except Exception as error:
            failures.append(error)
            raise


def headers_of(sequence_id: int) -> dict[str, str]:
    """The metadata of a conversation's calls: for a balancer, and for Triton's traces."""
    return {CONVERSATION: str(sequence_id), **traces.headers()}


def _tick_out(result: Any, took_s: float) -> TickOut | TickError:
    missing = [name for name in ("AUDIO_OUT", "TEXT", "EVENTS") if result.as_numpy(name) is None]
    if missing:  # seen from a Triton about to crash
        return TickError(f"Triton's answer has no {', '.join(missing)}")
    return TickOut(
        pcm=result.as_numpy("AUDIO_OUT").tobytes(),
        text=result.as_numpy("TEXT").item().decode(),
        events=json.loads(result.as_numpy("EVENTS").item()),
        took_s=took_s,
    )
