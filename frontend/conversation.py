"""One WebSocket, one conversation: the client's sound to Triton in ticks, sound and events back."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from fastapi import WebSocket, WebSocketDisconnect

from config import Settings
from frontend.framer import Framer
from frontend.protocol import (
    SAMPLE_BYTES,
    CloseCode,
    Control,
    Event,
    ProtocolError,
    check_options,
    check_sound,
    error_event,
    opened_event,
    parameters_of,
    parse_control,
)
from frontend.triton import TickError, TickIn, TickOut, TritonLink, new_sequence_id


class Conversation:
    """Runs from the opened event to the close. Whatever becomes of the client, Triton gets an END."""

    def __init__(self, socket: WebSocket, link: TritonLink, settings: Settings, options: Mapping[str, Any]):
        self.sequence_id = new_sequence_id()
        self._socket = socket
        self._link = link
        self._settings = settings
        self._options = dict(options)
        self._framer = Framer(settings.audio.input_samples * SAMPLE_BYTES)
        self._room = asyncio.Semaphore(settings.bridge.ticks_in_flight)
        self._started = False
        self._output_ahead_bytes = 0  # of output: silence that closed a tick early, not yet left out again
        self._last_tick_s = time.monotonic()
        self._stop = asyncio.Event()  # no more sound is taken: the client is gone, or a tick failed
        self._close_code = CloseCode.NORMAL

    async def run(self) -> None:
        """Returns when the conversation is over and the WebSocket is closed."""
        await self._send_event(opened_event(self.sequence_id, self._settings))
        answers = self._link.converse(self.sequence_id, self._ticks())
        try:
            async for answer in answers:
                self._room.release()
                await self._deliver(answer)
        except TickError as error:
            await self._deliver(error)
        await self._close()

    async def _deliver(self, answer: TickOut | TickError) -> None:
        if self._close_code is not CloseCode.NORMAL:
            return  # drop responses that arrive after the conversation failed
        if isinstance(answer, TickError):
            self._close_code = CloseCode.TRY_AGAIN_LATER if answer.is_full else CloseCode.INTERNAL_ERROR
            await self._send_event(error_event("full" if answer.is_full else "tick_failed", str(answer)))
            self._stop.set()
            return
        for event in answer.events:
            await self._send_event(event)
        await self._send(self._socket.send_bytes, self._without_debt(answer.pcm))

    def _without_debt(self, pcm: bytes) -> bytes:
        """A tick's sound without the silence by which the loudspeaker's clock is ahead of the microphone's."""
        if self._output_ahead_bytes and not any(pcm):
            cut = min(self._output_ahead_bytes, len(pcm))
            self._output_ahead_bytes -= cut
            pcm = pcm[cut:]
        return pcm

    async def _ticks(self) -> AsyncIterator[TickIn]:
        """The client's sound in ticks; the last one carries END."""
        asked: dict[str, Any] = {}  # of the next tick
        async for message in self._messages():
            try:
                if isinstance(message, bytes):
                    for pcm in self._framer.feed(check_sound(message, self._settings.bridge.max_frame_bytes)):
                        if self._stop.is_set():
                            break
                        yield await self._tick(pcm, asked)
                        asked = {}
                    continue
                control, details = parse_control(message)
                if control is Control.END:
                    yield await self._tick(self._framer.flush(), asked, end=True)
                    return
                if control is Control.OPTIONS:
                    self._choose(details)
                    continue
                if control is Control.RESET and not self._started:  # there is nothing to forget
                    await self._send_event({"type": "reset", "at_ms": 0})
                    continue
                asked |= parameters_of(control, details, self._settings.engine.dialect)
                if control in (Control.COMMIT, Control.MESSAGE):
                    yield await self._tick(self._close_tick(), asked)
                    asked = {}
            except ProtocolError as error:
                await self._send_event(error_event(error.code, error.message))
        if self._started:
            yield await self._tick(self._framer.flush(), asked, end=True)

    def _close_tick(self) -> bytes:
        """The open tick, closed with silence: the input clock runs ahead by it, and the loudspeaker's with it."""
        audio = self._settings.audio
        samples = self._framer.missing // SAMPLE_BYTES * audio.output_samples // audio.input_samples
        self._output_ahead_bytes += samples * SAMPLE_BYTES
        return self._framer.flush()

    def _choose(self, options: Mapping[str, Any]) -> None:
        if self._started:
            raise ProtocolError("too_late", "options came after the first tick of sound, expected them before")
        self._options |= check_options(options)

    async def _tick(self, pcm: bytes, asked: Mapping[str, Any], end: bool = False) -> TickIn:
        """A tick, when there is room for one more on its way."""
        await self._room.acquire()
        start, self._started = not self._started, True
        self._last_tick_s = time.monotonic()
        parameters = {**self._options, **asked} if start else dict(asked)
        return TickIn(pcm, start=start, end=end, parameters=parameters)

    async def _messages(self) -> AsyncIterator[bytes | str]:
        """What the client sends, until it goes, gives no whole tick for too long, or a tick fails."""
        stopped = asyncio.ensure_future(self._stop.wait())
        idle_s = self._settings.engine.idle_timeout_s
        try:
            while True:
                received = asyncio.ensure_future(self._socket.receive())
                left_s = max(0.0, self._last_tick_s + idle_s - time.monotonic())
                try:
                    done, _ = await asyncio.wait(
                        {received, stopped}, timeout=left_s, return_when=asyncio.FIRST_COMPLETED
                    )
                finally:
                    if not received.done():
                        received.cancel()
                if not done:
                    await self._fail_idle(idle_s)
                if received not in done:
                    return
                message = received.result()
                if message["type"] == "websocket.disconnect":
                    self._stop.set()
                    return
                yield message["bytes"] if message.get("bytes") is not None else message["text"]
        finally:
            stopped.cancel()

    async def _fail_idle(self, idle_s: float) -> None:
        self._close_code = CloseCode.INTERNAL_ERROR
        await self._send_event(
            error_event(
                "idle", f"no whole tick came for {idle_s:g} s (engine.idle_timeout_s), the conversation is closed"
            )
        )

    async def _send_event(self, event: Event) -> None:
        await self._send(self._socket.send_text, json.dumps(event, ensure_ascii=False))

    async def _send(self, send: Any, data: bytes | str) -> None:
        """Sends, or learns that the client is gone: then its conversation ends, and nothing else."""
        try:
            await asyncio.wait_for(send(data), self._settings.bridge.response_timeout_s)
        except (WebSocketDisconnect, RuntimeError, asyncio.TimeoutError):
            self._stop.set()  # RuntimeError is starlette's word for a socket already closed; or it reads no more

    async def _close(self) -> None:
        try:
            await self._socket.close(self._close_code)
        except (WebSocketDisconnect, RuntimeError):
            self._stop.set()
