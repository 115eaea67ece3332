"""One WebSocket, one conversation: the client's sound to Triton in ticks, sound and events back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from fastapi import WebSocket

from contract.controls import Controls
from contract.events import AnswerStarted
from frontend.access import RefusedError
from frontend.admission import Reservation
from frontend.audio.pcm import SAMPLE_BYTES
from frontend.bridge import Bridge
from frontend.floor import Floor
from frontend.log import Journal
from frontend.metrics import GAPS, LAG
from frontend.pcm16.frames import (
    GREATEST_INTEGER,
    Control,
    Event,
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
from frontend.pcm16.resumable_socket import ResumableSocket
from frontend.session.client_clock import ClientClock
from frontend.session.ended import CloseCode, end_of
from frontend.tick import TickError, TickIn, TickOut, new_sequence_id

MAX_GAPS = 1000  # that a page tells of at once
MAX_TICKS_AFTER_END = 2000  # in which the rest of an answer is given


class Pcm16Conversation:
    """Runs from the opened event to the close. Whatever becomes of the client, Triton gets an END."""

    def __init__(self, socket: WebSocket, bridge: Bridge, place: Reservation):
        """Its options are the query's parameters. Raises `ProtocolError` for one that is not known."""
        settings = bridge.settings
        self.sequence_id = new_sequence_id()
        options = dict(socket.query_params)
        is_resumable = options.pop("resumable", "false").lower() in ("true", "1")
        self._options = check_options(options)
        self._settings = settings
        self._place = place
        self._bridge = bridge
        self._line = ResumableSocket(socket, settings.bridge, is_resumable)
        self._inbox = self._line.inbox
        self._framer = ClientClock(settings.audio.input_samples * SAMPLE_BYTES)
        self._room = asyncio.Semaphore(settings.bridge.ticks_in_flight)
        self._turns = Floor(settings.turn.create_response)
        self._playout = Playout(settings.bridge.max_lag_ms / 1000)
        self._started = False
        self._sent = self._answered = self._answers = 0
        self._tick_s: float | None = None  # that the last one took
        self._was_answered = asyncio.Event()
        self._journal = Journal("pcm16", str(self.sequence_id), place.caller.name)
        self._why = "gone"  # it ends
        self._began_s = time.monotonic()
        self._waited_s = 0.0  # for the client, since its last whole tick
        self._close_code = CloseCode.NORMAL

    async def run(self) -> None:
        """Returns when the conversation is over and the WebSocket is closed."""
        try:
            with self._bridge.resumable(self._line):
                await self._converse()
        except TickError as error:
            await self._deliver(error)
        finally:
            self._line.cut()
        if self._line.reads_nothing and self._close_code is CloseCode.NORMAL:
            self._close_code, self._why = CloseCode.POLICY_VIOLATION, "reads_nothing"
        self._place.leave()  # before the client hears of it: it may come again at once
        await self._line.close(self._close_code)
        self._journal.ended(self._why, ticks=self._sent, answers=self._answers)

    async def _converse(self) -> None:
        opened = opened_event(self.sequence_id, self._settings)
        if self._line.token:
            opened |= {"resume_token": self._line.token, "resume_s": self._settings.bridge.resume_s}
        await self._send(opened)
        with self._journal.traced():
            async for answer in self._bridge.converse(self.sequence_id, self._ticks()):
                self._room.release()
                self._answered += 1
                await self._deliver(answer)
                self._was_answered.set()

    async def end(self, code: str, message: str, close_code: CloseCode) -> None:
        """Ends it from outside, with the reason."""
        if self._close_code is CloseCode.NORMAL and not self._inbox.is_over:
            self._close_code, self._why = close_code, code
            await self._send(error_event(code, message))
            self._inbox.close()

    async def tell(self, event: Event) -> None:
        """Says something that is not the engine's."""
        await self._send(event)

    async def _deliver(self, answer: TickOut | TickError) -> None:
        if isinstance(answer, TickError):
            why, close_code = end_of(answer)
            await self.end(why, str(answer), close_code)
            return
        if self._inbox.is_over:
            return  # nobody hears it, or it failed
        self._tick_s = answer.took_s
        for event in answer.events:
            self._turns.note(event)
            self._answers += isinstance(event, AnswerStarted)
            await self._send(event.to_json())
        pcm, lag = self._playout.put(answer.pcm)
        if lag:
            self._journal.note("lag", lag_ms=lag["lag_ms"], is_catching_up=lag["is_catching_up"])
            if lag["is_catching_up"]:
                LAG.observe(lag["lag_ms"] / 1000)
            await self._send(lag)
        await self._send(pcm)

    async def _ticks(self) -> AsyncIterator[TickIn]:
        """The client's sound in ticks; the last one carries END."""
        asked = Controls()  # controls of the next tick
        while (message := await self._take()) is not None:
            try:
                if isinstance(message, bytes):
                    for pcm in self._framer.feed(check_sound(message, self._settings.bridge.max_frame_bytes)):
                        if self._inbox.is_over:
                            break
                        yield await self._tick(pcm, asked)
                        asked = Controls()
                    continue
                await self._inbox.pace(len(message))
                control, details = parse_control(message)
                if control is Control.END:
                    self._why = "end"
                    async for tick in self._rest(asked):
                        yield tick
                    return
                if control is Control.OPTIONS:
                    self._choose(details)
                    continue
                if control in (Control.PING, Control.PLAYBACK):
                    await self._note(control, details)
                    continue
                if control is Control.RESET and not self._started:  # there is nothing to forget
                    await self._send({"type": "reset", "at_ms": 0})
                    continue
                asked = add_control(asked, control, details, self._settings.engine.dialect)
                if control in (Control.COMMIT, Control.MESSAGE) and not self._inbox.is_over:
                    yield await self._tick(self._close_tick(), asked)
                    asked = Controls()
            except ProtocolError as error:
                await self._send(error_event(error.code, error.message))
            except RefusedError as refusal:
                await self.end(refusal.code, refusal.message, CloseCode.TRY_AGAIN_LATER)
        if self._started:
            yield await self._tick(self._framer.flush(), asked, end=True)

    async def _rest(self, asked: Controls) -> AsyncIterator[TickIn]:
        """The open tick; then, where turns are taken, silence until nobody speaks any more; END."""
        if self._settings.engine.dialect == "turn" and (self._started or self._framer.is_open):
            yield await self._tick(self._framer.flush(), asked)
            asked = Controls()
            for _ in range(MAX_TICKS_AFTER_END):
                while self._answered < self._sent and not self._inbox.is_over:
                    self._was_answered.clear()
                    await self._inbox.unless_over(self._was_answered.wait())
                if self._turns.is_quiet or self._inbox.is_over:
                    break
                yield await self._tick(self._framer.flush(), asked)
        yield await self._tick(self._framer.flush(), asked, end=True)

    def _close_tick(self) -> bytes:
        """The open tick, closed with silence: the input clock runs ahead by it, and the loudspeaker's with it."""
        audio = self._settings.audio
        samples = self._framer.missing // SAMPLE_BYTES * audio.output_samples // audio.input_samples
        self._playout.owe(samples * SAMPLE_BYTES)
        return self._framer.flush()

    async def _note(self, control: Control, details: Mapping[str, Any]) -> None:
        """What the engine has no part in."""
        if control is Control.PLAYBACK:
            GAPS.inc(number_of(control, details, "gaps", MAX_GAPS))
        else:
            sent, tick_ms = number_of(control, details, "sent", GREATEST_INTEGER), self._tick_s and self._tick_s * 1000
            await self._send({"type": "pong", "sent": sent, "tick_ms": tick_ms})

    def _choose(self, options: Mapping[str, Any]) -> None:
        if self._started:
            raise ProtocolError("too_late", "options came after the first tick of sound, expected them before")
        chosen = {**self._options, **check_options(options)}
        check_values(chosen, self._settings, self._bridge.engine.voices)
        self._options = chosen

    async def _tick(self, pcm: bytes, asked: Controls, end: bool = False) -> TickIn:
        """A tick, when there is room for one more on its way. `RefusedError`: the first finds no place."""
        self._place.take()
        await self._room.acquire()
        start, self._started = not self._started, True
        if start and (answers := self._options.get("create_response")) is not None:
            self._turns.creates_responses = str(answers).lower() in ("true", "1")
        self._sent += 1
        self._waited_s = 0.0
        return TickIn(pcm, start=start, end=end, controls=asked, options=self._options if start else {})

    async def _take(self) -> bytes | str | None:
        """What the client sends next; None when it goes, gives no whole tick for too long, or its time is up."""
        settings = self._settings
        begun_s = time.monotonic()
        idle_s = settings.engine.idle_timeout_s - self._waited_s
        over_s = self._began_s + settings.bridge.conversation_s - begun_s
        try:
            return await asyncio.wait_for(self._inbox.take(), max(0.0, min(idle_s, over_s)))
        except asyncio.TimeoutError:
            if over_s <= idle_s:
                await self.end(
                    "expired",
                    f"the conversation has lasted {settings.bridge.conversation_s:g} s (bridge.conversation_s)",
                    CloseCode.POLICY_VIOLATION,
                )
            else:
                await self.end(
                    "idle",
                    f"no whole tick came for {settings.engine.idle_timeout_s:g} s (engine.idle_timeout_s), "
                    "the conversation is closed",
                    CloseCode.INTERNAL_ERROR,
                )
            return None
        finally:
            self._waited_s += time.monotonic() - begun_s

    async def _send(self, message: bytes | Event) -> None:
        await self._line.send(message if isinstance(message, bytes) else event_text(message))
