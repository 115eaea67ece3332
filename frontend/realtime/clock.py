"""When a tick goes to the engine, and what is in it: a conversation's own clock.

- A whole tick of sound goes as soon as it is there. While an answer is given it goes no faster than it is heard,
  so that an answer can be interrupted where its listener is.
- Where no sound comes and something is going on (speech, an answer), silence comes in its place, a tick at a time, and
  faster where the answer is not spoken.
- Where nothing goes on there are no ticks, but for one now and then, that the engine keeps the conversation.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from config.settings import INPUT_HZ
from frontend.audio.pcm import SAMPLE_BYTES

LATE_S = 0.25  # sound that is so late is waited for, from a client whose sound has been coming
WRITES_FASTER = 4  # times than it would be spoken, so that the other conversations keep most of the engine
COMING_S = 1.0  # how long ago that may have been
MAX_HELD_S = 60.0  # of sound: past it the client's next event waits
MAX_SPOKEN = 100  # stretches of a microphone's sound whose places are known
BYTES_A_SECOND = INPUT_HZ * SAMPLE_BYTES
MAX_HELD_BYTES = int(MAX_HELD_S * BYTES_A_SECOND)


IN_A_TICK = ("turn", "cancel", "truncate", "forget", "items", "listen", "message", "commit", "respond", "out_of_band")
"""Controls in the order in which the engine takes those of one tick."""


class Planned(NamedTuple):
    """A tick that will go as it is."""

    pcm: bytes
    asked: dict[str, Any]
    spoken: Spoken | None = None  # what of it is the client's microphone's


class Spoken(NamedTuple):
    """Bytes of what came from a client's microphone, counted from its first."""

    begin: int
    length: int


NOTHING = Spoken(0, 0)


class Clock:
    """Sound and controls go in as they come, ticks come out when they are due."""

    def __init__(self, tick_ms: int, keep_alive_s: float, now: Callable[[], float] = time.monotonic):
        """`keep_alive_s`: interval of ticks while nothing else is due; `now`: current time in seconds."""
        self._now = now
        self._tick_s = tick_ms / 1000
        self._tick_bytes = tick_ms * BYTES_A_SECOND // 1000
        self._keep_alive_s = keep_alive_s
        self._held = bytearray()
        self._came = 0  # bytes of the microphone's, of which the last are held
        self._gone = 0  # bytes of ticks
        self._spoken = deque([(0, NOTHING)], maxlen=MAX_SPOKEN)  # where in the ticks, and what
        self._planned: deque[Planned] = deque()
        self._asked: deque[dict[str, Any]] = deque()
        self.changed = asyncio.Event()  # set when the next tick may be due earlier than `poll` returned
        self._room = asyncio.Event()
        self._room.set()
        self._came_s = -COMING_S  # when sound came last
        self._due_s = 0.0  # time at which the next tick is due
        self.holds = False  # sound waits for `commit`
        self.is_active = False  # speech or an answer goes on: time has to pass
        self.is_answering = False  # in speech
        self.is_writing = False  # an answer that nobody speaks

    @property
    def held_ms(self) -> int:
        """Milliseconds of sound that wait."""
        return len(self._held) * 1000 // BYTES_A_SECOND

    @property
    def planned_ms(self) -> float:
        """Milliseconds of ticks that will go as they are."""
        return len(self._planned) * self._tick_s * 1000

    async def append(self, pcm: bytes) -> None:
        """More sound of the client; waits where a minute of it has not gone yet.

        Where sound waits for `commit`, the newest minute is held.
        """
        if not self.holds:
            await self._room.wait()
        self._hold(pcm)
        if self.holds:
            del self._held[: max(0, len(self._held) - MAX_HELD_BYTES)]
        self._came_s = self._now()
        if len(self._held) > MAX_HELD_BYTES and not self.holds:
            self._room.clear()
        self.changed.set()

    def _hold(self, pcm: bytes) -> None:
        self._held += pcm
        self._came += len(pcm)

    def clear(self) -> None:
        """Forgets the sound that waits."""
        self._held.clear()
        self._room.set()

    def ask(self, **asked: Any) -> None:
        """Controls for a tick that does not wait for sound, and comes after what was planned before.

        Those that the engine takes in the order in which they were asked share a tick.
        """
        if self._planned:
            self._planned.append(Planned(bytes(self._tick_bytes), asked))
        elif self._asked and _last(self._asked[-1]) < min(map(IN_A_TICK.index, asked)):
            self._asked[-1] |= asked
        else:
            self._asked.append(asked)
        self.changed.set()

    def plan(
        self, pcm: bytes, first: Mapping[str, Any], last: Mapping[str, Any], spoken_from: int | None = None
    ) -> None:
        """Ticks of a whole sound, filled up with silence, with controls on the first and the last.

        `spoken_from`: where it begins in what the microphone has said; None: it is not the microphone's.
        """
        self._planned += [Planned(bytes(self._tick_bytes), asked) for asked in self._asked]  # they came before it
        self._asked.clear()
        size = self._tick_bytes
        parts = [pcm[start : start + size].ljust(size, b"\0") for start in range(0, max(1, len(pcm)), size)]
        for number, part in enumerate(parts):
            asked = {**(first if number == 0 else {}), **(last if number == len(parts) - 1 else {})}
            at, length = number * size, min(size, len(pcm) - number * size)
            spoken = None if spoken_from is None else Spoken(spoken_from + at, length)
            self._planned.append(Planned(part, asked, spoken))
        self.changed.set()

    def commit(self, rest: bytes, first: Mapping[str, Any], last: Mapping[str, Any] = MappingProxyType({})) -> None:
        """The sound that waits, and `rest`, go now, and the user's turn ends with it, in a tick that has `last` too."""
        self._hold(rest)
        self.plan(bytes(self._held), first, {**last, "commit": True}, self._came - len(self._held))
        self.clear()

    def spoken_ms(self, at_ms: float) -> float:
        """Where in what the microphone has said a moment of the ticks is: what was put in between is left out."""
        at = at_ms * BYTES_A_SECOND / 1000
        begin, spoken = next((stretch for stretch in reversed(self._spoken) if stretch[0] <= at), (0, NOTHING))
        return (spoken.begin + min(at - begin, spoken.length)) * 1000 / BYTES_A_SECOND

    def wake(self) -> None:
        """Something that decides when a tick is due has changed."""
        self.changed.set()

    def poll(self) -> Planned | float | None:
        """Return the next tick if it is due; otherwise the seconds until it is due, None before `changed` is set."""
        self.changed.clear()
        self._due_s = self._due_s or self._now()
        tick, wait_s = self._take()
        if tick is None:
            return wait_s
        self._note_spoken(tick)
        now = self._now()
        self._due_s = min(max(self._due_s, now - LATE_S), now) + self._tick_s
        return tick

    async def next(self) -> Planned:
        """Return the next tick as soon as it is due."""
        while not isinstance(found := self.poll(), Planned):
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.changed.wait(), found)
        return found

    def _note_spoken(self, tick: Planned) -> None:
        if tick.spoken:
            begin, before = self._spoken[-1]
            if begin + before.length == self._gone and before.begin + before.length == tick.spoken.begin:
                self._spoken[-1] = begin, Spoken(before.begin, before.length + tick.spoken.length)
            else:
                self._spoken.append((self._gone, tick.spoken))
        self._gone += self._tick_bytes

    def _take(self) -> tuple[Planned | None, float | None]:
        """A tick that is due, or how long until one may be; None: until something changes."""
        now = self._now()
        if self._asked and (not self._held or self.holds):
            return Planned(bytes(self._tick_bytes), self._asked.popleft()), 0
        if self._planned:
            return self._planned.popleft(), 0
        until_due_s = self._due_s - now
        if len(self._held) >= self._tick_bytes and not self.holds:
            if self.is_answering and until_due_s > 0:
                return None, until_due_s
            return self._sound(), 0
        silence_s = self._keep_alive_s
        if self.is_active or self._asked:
            silence_s = self._tick_s / WRITES_FASTER - self._tick_s if self.is_writing else 0.0
            if now - self._came_s < COMING_S and not self.holds:
                silence_s = LATE_S
        if until_due_s + silence_s > 0:
            return None, until_due_s + silence_s
        return self._sound(), 0

    def _sound(self) -> Planned:
        """A tick of what is held, filled up with silence."""
        size = 0 if self.holds else self._tick_bytes
        pcm = bytes(self._held[:size])
        spoken = Spoken(self._came - len(self._held), len(pcm)) if pcm else None
        del self._held[:size]
        if len(self._held) <= MAX_HELD_BYTES / 2:
            self._room.set()
        return Planned(pcm.ljust(self._tick_bytes, b"\0"), self._asked.popleft() if self._asked else {}, spoken)


def _last(asked: Mapping[str, Any]) -> int:
    """The place of the last of these controls in a tick."""
    return max(map(IN_A_TICK.index, asked))
