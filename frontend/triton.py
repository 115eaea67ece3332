"""The gRPC link to a Triton server: one stream for each conversation."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from functools import cached_property
from typing import Any

import grpc
import numpy as np
import tritonclient.grpc.aio as triton
from tritonclient.utils import InferenceServerException

from config import Settings
from contract.errors import decode
from contract.events import event_of
from frontend.metrics import TICK
from frontend.tick import TickError, TickIn, TickOut
from frontend.tracer import Tracer

logger = logging.getLogger(__name__)
MODEL = "duplex"
ENGINE = "thinker_talker"  # the stage that holds the conversations
PREFIX = f"in ensemble '{MODEL}', "  # Triton's own words before the engine's message
OUTPUTS = ("AUDIO_OUT", "TEXT", "EVENTS")
END_TIMEOUT_S = 5.0
FACT_TIMEOUT_S = 2.0  # timeout of a request that needs no model
WATCH_S = 0.5  # interval between checks for an overdue answer
CONVERSATION_HEADER = "sca-conversation"  # header by which a load balancer keeps a conversation on one replica
CHANNEL = [
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 2000),  # gRPC's default is two minutes
]


@dataclass(frozen=True)
class EngineFacts:
    """Properties of an engine that its bridge needs."""

    slots: int = 0  # capacity in conversations; 0: unknown
    voices: tuple[str, ...] = ()


class TritonLink:
    """A channel to one Triton server."""

    def __init__(self, settings: Settings, url: str = "", tracer: Tracer | None = None):
        """Use a gRPC endpoint; default: the first of `settings.triton.urls`."""
        self.url = url or settings.triton.urls[0]
        self.tracer = tracer or Tracer()
        self.samples = settings.audio.input_samples
        self.timeout_s = settings.bridge.response_timeout_s
        self.answered_s = -math.inf  # time of the latest answer, on the monotonic clock
        self._ending: set[asyncio.Task[None]] = set()  # abandoned conversations whose END is on its way

    @cached_property
    def client(self) -> triton.InferenceServerClient:
        """The gRPC channel, which belongs to the event loop of its first use."""
        return triton.InferenceServerClient(self.url, channel_args=CHANNEL)

    async def is_ready(self) -> bool:
        """Return whether Triton is up and every stage of the ensemble is loaded."""
        try:
            return bool(await self.client.is_model_ready(MODEL, client_timeout=FACT_TIMEOUT_S))
        except (InferenceServerException, grpc.RpcError):
            return False

    async def engine(self) -> EngineFacts:
        """Return the engine's properties, from the config of its model."""
        answer = await self.client.get_model_config(ENGINE, client_timeout=FACT_TIMEOUT_S)
        parameters = answer.config.parameters
        settings = json.loads(parameters["settings"].string_value)
        return EngineFacts(int(settings["engine"]["slots"]), tuple(json.loads(parameters["voices"].string_value)))

    async def converse(self, sequence_id: int, ticks: AsyncIterator[TickIn]) -> AsyncGenerator[TickOut | TickError]:
        """Yield the answers of one conversation, one for each tick and in order, until `ticks` ends.

        The answer to a tick that Triton refuses is its `TickError`; the stream continues. Raises `TickError` if Triton
        is lost or an answer is overdue. Triton receives an END in every case.
        """
        stream = _Stream(self, sequence_id, ticks)
        try:
            async for answer in stream.answers():
                yield answer
        finally:
            ending = asyncio.create_task(stream.leave())
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)

    async def ended(self, within_s: float = END_TIMEOUT_S) -> None:
        """Return when abandoned conversations have received their END, at the latest after `within_s`."""
        if self._ending:
            await asyncio.wait(set(self._ending), timeout=within_s)

    async def close(self) -> None:
        """Close the channel, after the END of abandoned conversations."""
        await self.ended()
        if "client" in vars(self):
            await self.client.close()


class _Progress(Enum):
    """The requests of a conversation that the stream has accepted."""

    NONE = auto()
    STARTED = auto()
    ENDED = auto()  # the last one had END


class _Stream:
    """The gRPC stream of one conversation."""

    def __init__(self, link: TritonLink, sequence_id: int, ticks: AsyncIterator[TickIn]):
        self._link, self._sequence_id, self._ticks = link, sequence_id, ticks
        self._headers = {CONVERSATION_HEADER: str(sequence_id), **link.tracer.headers()}
        self._sent: deque[float] = deque()  # send times of the ticks in flight
        self._progress = _Progress.NONE
        self._is_abandoned = False
        self._failure: Exception | None = None  # exception of `ticks`
        self._waiting: asyncio.Future[Any] | None = None  # the next response
        self._responses = link.client.stream_infer(self._requests(), headers=self._headers)

    async def answers(self) -> AsyncGenerator[TickOut | TickError]:
        """Yield one answer for each tick. Raises `TickError`."""
        try:
            while True:
                try:
                    result, error = await self._next()
                except StopAsyncIteration:
                    return
                took_s = time.monotonic() - self._sent.popleft()
                TICK.observe(took_s)
                if not error:
                    self._link.answered_s = time.monotonic()
                yield _error_of(error.message()) if error else _tick_out(result, took_s)
        except grpc.aio.AioRpcError as error:
            raise TickError(f"Triton at {self._link.url} does not answer: {error.details()}") from error

    async def leave(self) -> None:
        """Receive the answers to the ticks in flight, then send an END if the conversation has not sent one.

        An END outside of the stream could overtake those ticks, and Triton cancels it together with them: the slot
        would idle.
        """
        self._is_abandoned = True
        while self._sent and await self._has_received():
            self._sent.popleft()
        if self._waiting:
            self._waiting.cancel()
        self._responses.cancel()
        if self._progress is _Progress.STARTED:
            await self._end()

    async def _next(self) -> Any:
        """Return the next response. Raises `TickError` if the oldest tick in flight is overdue."""
        self._waiting = waiting = asyncio.ensure_future(anext(self._responses))
        timeout_s = self._link.timeout_s
        while not (await asyncio.wait({waiting}, timeout=WATCH_S))[0]:
            if self._sent and time.monotonic() - self._sent[0] > timeout_s:
                raise TickError(f"a tick has waited {timeout_s:g} s for its answer (bridge.response_timeout_s)")
        self._waiting = None
        if waiting.cancelled():  # gRPC cancels a call whose requests raise, without the reason
            raise self._failure or TickError(f"the stream to Triton at {self._link.url} was cut off")
        return waiting.result()

    async def _has_received(self) -> bool:
        """Return whether one more response was received within `END_TIMEOUT_S`."""
        waiting = self._waiting or asyncio.ensure_future(anext(self._responses))
        self._waiting = None
        await asyncio.wait({waiting}, timeout=END_TIMEOUT_S)
        if not waiting.done():
            waiting.cancel()
            return False
        return not waiting.cancelled() and waiting.exception() is None

    async def _end(self) -> None:
        """Send an END outside of the stream."""
        silence = bytes(2 * self._link.samples)
        try:
            await self._link.client.infer(
                MODEL,
                [self._input(silence)],
                sequence_id=self._sequence_id,
                sequence_end=True,
                headers=self._headers,
                client_timeout=END_TIMEOUT_S,
            )
        except (InferenceServerException, grpc.RpcError) as error:  # Triton has ended the sequence, or is lost
            logger.info("conversation %s could not be ended: %s", self._sequence_id, error)

    def _input(self, pcm: bytes) -> triton.InferInput:
        audio = triton.InferInput("AUDIO_IN", [1, self._link.samples], "INT16")
        audio.set_data_from_numpy(np.frombuffer(pcm, np.int16)[None])
        return audio

    async def _requests(self) -> AsyncIterator[Mapping[str, Any]]:
        try:
            async for tick in self._ticks:
                if self._is_abandoned:
                    return
                audio = self._input(tick.pcm)
                self._sent.append(time.monotonic())
                self._progress = _Progress.STARTED
                yield {
                    "model_name": MODEL,
                    "inputs": [audio],
                    "sequence_id": self._sequence_id,
                    "sequence_start": tick.start,
                    "sequence_end": tick.end,
                    "parameters": tick.parameters or None,
                }
                if tick.end:  # the stream has accepted the request
                    self._progress = _Progress.ENDED
        except Exception as error:
            self._failure = error
            raise


def _error_of(text: str) -> TickError:
    code, message = decode(text.removeprefix(PREFIX))
    return TickError(message, code)


def _tick_out(result: Any, took_s: float) -> TickOut | TickError:
    missing = [name for name in OUTPUTS if result.as_numpy(name) is None]
    if missing:  # seen from a Triton that is about to crash
        return TickError(f"expected the outputs {', '.join(OUTPUTS)} from Triton, got none of {', '.join(missing)}")
    return TickOut(
        pcm=result.as_numpy("AUDIO_OUT").tobytes(),
        text=result.as_numpy("TEXT").item().decode(),
        events=[event_of(found) for found in json.loads(result.as_numpy("EVENTS").item())],
        took_s=took_s,
    )
