"""One client of `/ws/pcm16`: its audio and controls become ticks, the engine's answers binary frames and events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict
from typing import Any

from fastapi import WebSocket

from contract.controls import Controls
from contract.errors import ErrorCode
from frontend.access import RefusedError
from frontend.admission import Reservation
from frontend.audio.pcm import SAMPLE_BYTES
from frontend.bridge import Bridge
from frontend.floor import Floor
from frontend.metrics import GAPS, LAG
from frontend.pcm16.frames import (
    MAX_INTEGER,
    Control,
    ProtocolError,
    add_control,
    check_options,
    check_sound,
    check_values,
    error_event,
    event_text,
    number_of,
    opened_event,
    parse_control,
)
from frontend.pcm16.playout import Playout
from frontend.pcm16.resumable_socket import ResumableSocket, ResumableSockets, SocketState
from frontend.session.client_clock import ClientClock
from frontend.session.ended import CLIENT_ENDED, READS_NOTHING, Ended
from frontend.tick import TickIn, TickOut

MAX_GAPS = 1000  # gaps in one report of a page
MAX_TICKS_AFTER_END = 2000  # ticks for the rest of an answer after the client's end


class Pcm16Conversation:
    """Runs from the event `conversation.opened` to the close; the engine receives an END in every case."""

    def __init__(self, socket: WebSocket, bridge: Bridge, reservation: Reservation, sockets: ResumableSockets):
        """Read the options from the query of `socket`. Raises `ProtocolError` for an unknown one."""
        settings = bridge.settings
        options = dict(socket.query_params)
        is_resumable = options.pop("resumable", "false").lower() in ("true", "1")
        self._options = check_options(options)
        self._settings, self._bridge, self._sockets = settings, bridge, sockets
        self._session = bridge.session(reservation, "pcm16")
        self._socket = ResumableSocket(socket, settings.bridge, is_resumable)
        self._inbox = self._socket.inbox
        self._clock = ClientClock(settings.audio.input_samples * SAMPLE_BYTES)
        self._floor = Floor(settings.turn.create_response)
        self._playout = Playout(settings.bridge.max_lag_ms / 1000)
        self._waited_s = 0.0  # time of waiting for the client, since its last whole tick
        self._controls = Controls()  # controls of the next tick

    async def run(self) -> None:
        """Serve the client until the conversation is over and the WebSocket is closed."""
        session, socket = self._session, self._socket
        opened = opened_event(session.sequence_id, self._settings)
        try:
            with self._sockets.registered(socket):
                if socket.token:
                    opened |= {"resume_token": socket.token, "resume_s": self._settings.bridge.resume_s}
                await self.notify(opened)
                await session.run(self)
        finally:
            socket.cut()
        if socket.state is SocketState.STALLED:
            session.end(READS_NOTHING)
        session.leave()
        await socket.close(session.ended.close_code)
        session.close(ticks=session.ticks, answers=session.answers)

    async def end(self, ended: Ended) -> None:
        """End the conversation; the client receives the error, if there is one."""
        if not self._inbox.is_over and self._session.end(ended):
            if ended.code:
                code = ErrorCode.BAD_OPTION if ended.code is ErrorCode.PROMPT_TOO_LONG else ended.code
                await self.notify(error_event(code, ended.message))
            self._inbox.close()

    async def notify(self, event: Mapping[str, Any]) -> None:
        """Send an event."""
        await self._socket.send(event_text(event))

    async def deliver(self, tick: TickOut, sent: TickIn) -> None:
        """Send a tick's events, then its audio."""
        if self._inbox.is_over:  # the client has left, or the conversation has failed
            return
        for event in tick.events:
            self._floor.note(event)
            await self.notify(event.to_json())
        pcm, lag = self._playout.put(tick.pcm)
        if lag:
            self._session.journal.note("lag", **asdict(lag))
            if lag.is_catching_up:
                LAG.observe(lag.lag_ms / 1000)
            await self.notify({"type": "lag", **asdict(lag)})
        await self._socket.send(pcm)

    async def ticks(self) -> AsyncIterator[TickIn]:
        """Yield the client's audio in ticks; the last one has END."""
        while (message := await self._take()) is not None:
            try:
                if isinstance(message, bytes):
                    for pcm in self._clock.feed(check_sound(message, self._settings.bridge.max_frame_bytes)):
                        if self._inbox.is_over:
                            break
                        yield await self._tick(pcm)
                    continue
                await self._inbox.pace(len(message))
                control, details = parse_control(message)
                if control is Control.END:
                    async for tick in self._rest():
                        yield tick
                    return
                await self._handle(control, details)
                if control in (Control.COMMIT, Control.MESSAGE) and not self._inbox.is_over:
                    yield await self._tick(self._close_tick())
            except ProtocolError as error:
                await self.notify(error_event(error.code, error.message))
            except RefusedError as refusal:
                await self.end(Ended.of_refusal(refusal))
        if self._session.ticks:
            yield await self._tick(self._clock.flush(), end=True)

    async def _handle(self, control: Control, details: dict[str, Any]) -> None:
        """Handle a control other than `end`. Raises `ProtocolError`."""
        if control is Control.OPTIONS:
            self._choose(details)
        elif control is Control.PLAYBACK:
            GAPS.inc(number_of(control, details, "gaps", MAX_GAPS))
        elif control is Control.PING:
            sent, tick_s = number_of(control, details, "sent", MAX_INTEGER), self._session.tick_s
            await self.notify({"type": "pong", "sent": sent, "tick_ms": tick_s and tick_s * 1000})
        elif control is Control.RESET and not self._session.ticks:  # the engine has no conversation yet
            await self.notify({"type": "reset", "at_ms": 0})
        else:
            self._controls = add_control(self._controls, control, details, self._settings.engine.dialect)

    async def _rest(self) -> AsyncIterator[TickIn]:
        """Yield the open tick; then, in a dialect of turns, silence until the floor is quiet; the last tick has END."""
        self._session.expected_end = CLIENT_ENDED
        if self._settings.engine.dialect == "turn" and (self._session.ticks or self._clock.is_open):
            yield await self._tick(self._clock.flush())
            for _ in range(MAX_TICKS_AFTER_END):
                await self._inbox.unless_over(self._session.answered())
                if self._floor.is_quiet or self._inbox.is_over:
                    break
                yield await self._tick(self._clock.flush())
        yield await self._tick(self._clock.flush(), end=True)

    def _close_tick(self) -> bytes:
        """Return the open tick, padded with silence: input and output clock run ahead by the padding."""
        audio = self._settings.audio
        samples = self._clock.missing // SAMPLE_BYTES * audio.output_samples // audio.input_samples
        self._playout.owe(samples * SAMPLE_BYTES)
        return self._clock.flush()

    def _choose(self, options: Mapping[str, Any]) -> None:
        if self._session.ticks:
            message = "expected options before the first tick of audio, got them later"
            raise ProtocolError(ErrorCode.TOO_LATE, message)
        chosen = {**self._options, **check_options(options)}
        check_values(chosen, self._settings, self._bridge.engine.voices)
        self._options = chosen

    async def _tick(self, pcm: bytes, end: bool = False) -> TickIn:
        """Return a tick when one more may be in flight. Raises `RefusedError` if the engine has no place."""
        self._session.reserve()
        await self._session.ready()
        start = not self._session.ticks
        if start and (answers := self._options.get("create_response")) is not None:
            self._floor.creates_responses = str(answers).lower() in ("true", "1")
        self._waited_s = 0.0
        controls, self._controls = self._controls, Controls()
        return TickIn(pcm, start=start, end=end, controls=controls, options=self._options if start else {})

    async def _take(self) -> bytes | str | None:
        """Return the client's next message; None if the client leaves, idles, or its time is up."""
        begun_s = time.monotonic()
        idle_s, remaining_s = self._settings.engine.idle_timeout_s - self._waited_s, self._session.remaining_s
        try:
            return await asyncio.wait_for(self._inbox.take(), max(0.0, min(idle_s, remaining_s)))
        except asyncio.TimeoutError:
            if remaining_s <= idle_s:
                lasted_s = self._settings.bridge.conversation_s
                message = f"the conversation has lasted {lasted_s:g} s (bridge.conversation_s)"
                await self.end(Ended.of_error(ErrorCode.EXPIRED, message))
            else:
                timeout_s = self._settings.engine.idle_timeout_s
                message = f"no whole tick came for {timeout_s:g} s (engine.idle_timeout_s), the conversation is closed"
                await self.end(Ended.of_error(ErrorCode.IDLE, message))
            return None
        finally:
            self._waited_s += time.monotonic() - begun_s
