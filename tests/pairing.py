"""The engine's turn conversation and the Realtime protocol's conversation, connected in one process.

The model is scripted and time is a number, so thousands of conversations take seconds. Several ticks are in flight, and
the response to each arrives after a drawn delay: what the bridge knows of the engine is always late.
"""

from __future__ import annotations

import base64
import json
import math
import random
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import numpy as np

from frontend.realtime.conversation import RealtimeConversation
from frontend.realtime.events import RealtimeError, error_event, parse
from frontend.session.player import Cut
from frontend.session.server_clock import DueTick
from frontend.tick import TickIn, TickOut
from tests.realtime.ledger import Event, Ledger
from tests.scripted_engine import CONFIG, VOICES, ScriptedEngine, settings

IDLE_S = 5.0  # without a tick, if nothing goes on
MAX_WAIT_S = 0.6  # longest wait for a tick, if something goes on


class ScriptedPlayer:
    """Plays the sound of a call at its own pace."""

    def __init__(self, pair: Pair):
        self._pair = pair
        self._queue: deque[tuple[str, float, float]] = deque()  # response, begin and end of its playback
        self.sounds: dict[str, bytes] = {}

    def play(self, response_id: str, pcm: bytes, is_last: bool) -> None:
        begin_s = max([self._pair.now_s, *(end_s for _, _, end_s in self._queue)])
        self._queue.append((response_id, begin_s, begin_s + len(pcm) / 48_000))
        self.sounds[response_id] = self.sounds.get(response_id, b"") + pcm

    def clear(self) -> Cut | None:
        waiting = [each for each in self._queue if each[2] > self._pair.now_s]
        of_first = [each for each in self._queue if waiting and each[0] == waiting[0][0]]
        self._queue.clear()
        if not waiting:
            return None
        heard_s = sum(
            min(end_s, self._pair.now_s) - begin_s for _, begin_s, end_s in of_first if begin_s < self._pair.now_s
        )
        return Cut(waiting[0][0], round(heard_s * 1000))


class Pair:
    """A client, the bridge's conversation and the engine's, without a socket and without a model."""

    def __init__(
        self,
        seed: int = 0,
        is_call: bool = False,
        delay_s: tuple[float, float] = (0.0, 0.4),
        in_flight: int = 8,
        **config: Any,
    ):
        """Connect the two; `delay_s`: range of a tick's response time; `config`: fields of `TurnConfig`."""
        self._chance = random.Random(seed)
        self.now_s = 1000.0
        self.ledger = Ledger()
        self.received: list[Event] = []
        self.engine = ScriptedEngine(self._chance, replace(CONFIG, **config))
        self.player = ScriptedPlayer(self) if is_call else None
        self.bridge = RealtimeConversation(
            settings(), VOICES, "", 0, self._receive, self._start, self.player, now=lambda: self.now_s
        )
        self.ticks = 0  # ticks that the engine has computed
        self.clears = 0  # clears of the client that the engine receives
        self._delay_s, self._max_in_flight = delay_s, in_flight
        self._options: Event | None = None
        self._has_started = False
        self._due_s = math.inf
        self._taken: DueTick | None = None  # waits for one of the ticks in flight
        self._in_flight: deque[tuple[float, TickOut, TickIn]] = deque()  # arrival, response, tick
        self._sent = 0
        self.bridge.open()

    def send(self, kind: str, **fields: Any) -> str:
        """Send a client event with an id; return the id."""
        self._sent += 1
        event_id = f"event {self._sent}"
        self.ledger.request(event_id, kind, fields)
        self.clears += kind == "input_audio_buffer.clear" and self._has_started
        before = len(self.received)
        try:
            run(self.bridge.receive(parse(json.dumps({"type": kind, "event_id": event_id, **fields}))))
        except RealtimeError as error:
            self._receive(error_event(error, event_id))
        self.ledger.expect_reply(event_id, self.received[before:])
        return event_id

    def append(self, sound: Callable[[int], str], ms: int) -> None:
        """Send `speech` or `silence`: as events, in a call as the sound of its track."""
        if self.player:
            pcm = np.full(ms * 16, 1000, np.int16) if sound is speech else np.zeros(ms * 16, np.int16)
            run(self.bridge.append_audio(pcm.tobytes()))
        else:
            self.send("input_audio_buffer.append", audio=sound(ms))

    def respond(self, **wanted: Any) -> str:
        """Send `response.create` with the event's id as its name; return the id."""
        return self.send("response.create", response={**wanted, "metadata": {"name": f"event {self._sent + 1}"}})

    def update(self, **changes: Any) -> None:
        """Send `session.update`."""
        session: Event = {"type": "realtime", **changes}
        if "turn_detection" in session:
            session["audio"] = {"input": {"turn_detection": session.pop("turn_detection")}}
        self.send("session.update", session=session)

    def pass_time(self, seconds: float) -> None:
        """Let ticks and their responses go until the time has passed."""
        until_s = self.now_s + seconds
        while True:
            while self._in_flight and self._in_flight[0][0] <= self.now_s:
                _, response, tick = self._in_flight.popleft()
                self.bridge.deliver(response, tick)
            self._send_ticks()
            arrival_s = self._in_flight[0][0] if self._in_flight else math.inf
            next_s = min(arrival_s, math.inf if self._taken else self._due_s)
            self._expect_pace(next_s)
            if next_s > until_s:
                break
            self.now_s = max(self.now_s, next_s)
        self.now_s = until_s

    def settle(self, max_s: float = 120.0) -> None:
        """Pass time until every request has had its answer, and only a tick that keeps the conversation is due."""
        for _ in range(round(max_s)):
            self.pass_time(1.0)
            is_idle = not self._in_flight and not self._taken and self._due_s > self.now_s + IDLE_S
            if self.ledger.is_settled and is_idle:
                return
        raise AssertionError(f"after {max_s:g} s: {self.ledger}")

    def _expect_pace(self, next_s: float) -> None:
        """Assert that a tick is sent in time while a response is open or the user speaks."""
        is_active = self.ledger.user_speaks or self.ledger.current or any(each.item_id for each in self.ledger.open)
        if self._taken or not is_active:
            return
        assert min(next_s, self._due_s) <= self.now_s + MAX_WAIT_S, "no tick is due"

    def _start(self) -> None:
        assert not self._has_started
        self._has_started, self._options = True, self.bridge.session.options()

    def _send_ticks(self) -> None:
        """Take ticks when they are due; a tick waits while too many are in flight, as in the connection."""
        clock = self.bridge.clock
        while self._has_started:
            if self._taken is None:
                if not clock.changed.is_set() and self.now_s < self._due_s:
                    return
                found = clock.poll()
                if not isinstance(found, DueTick):
                    self._due_s = math.inf if found is None else self.now_s + max(found, 1e-6)
                    continue
                self._due_s, self._taken = self.now_s, found
            if len(self._in_flight) >= self._max_in_flight:
                return
            tick, self._taken = self._taken, None
            is_first = self._options is not None
            sent = TickIn(tick.pcm, start=is_first, controls=tick.controls, options=self._options or {})
            response = self.engine.tick(sent)
            self._options = None
            self.ticks += 1
            earliest_s = self._in_flight[-1][0] if self._in_flight else self.now_s
            arrival_s = max(earliest_s, self.now_s + self._chance.uniform(*self._delay_s))
            self._in_flight.append((arrival_s, response, sent))

    def _receive(self, *events: Event) -> None:
        for event in events:
            event = json.loads(json.dumps(event))
            self.received.append(event)
            self.ledger.take(event)


def run(work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine that has nothing to wait for."""
    try:
        work.send(None)
    except StopIteration:
        return
    raise AssertionError("the coroutine waits")


def base64_of(pcm: bytes) -> str:
    return base64.b64encode(pcm).decode()


def speech(ms: int) -> str:
    """Return sound that the scripted VAD takes for speech, PCM16 at 24 kHz in base64."""
    return base64_of(np.full(ms * 24, 1000, np.int16).tobytes())


def silence(ms: int) -> str:
    return base64_of(bytes(ms * 48))
