"""The clock of a conversation whose ticks are due on the server's time, not on the client's.

- A whole tick of audio is due at once. While a spoken answer is in progress, audio is sent no faster than the answer is
  played, so that the user interrupts the answer where the user is listening.
- While something is in progress and no audio comes, ticks of silence are due, one per tick length; for a text-only
  answer they are due faster.
- While nothing is in progress, a tick is due only to keep the conversation from its idle timeout.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from enum import Enum, auto
from typing import Any, NamedTuple

from config.settings import INPUT_HZ
from contract.controls import CONTROLS, ORDER, Controls
from frontend.audio.pcm import SAMPLE_BYTES

LATE_S = 0.25  # how long to wait for late audio from a client that sent audio in the last `RECENT_S`
RECENT_S = 1.0
TEXT_SPEED = 4  # speed of text-only answers relative to speech: leaves most of the engine to other conversations
MAX_HELD_S = 60.0  # audio that may wait; beyond it the client's next event waits
MAX_STRETCHES = 100  # stretches of the microphone's audio that `microphone_ms` knows
BYTES_A_SECOND = INPUT_HZ * SAMPLE_BYTES
MAX_HELD_BYTES = int(MAX_HELD_S * BYTES_A_SECOND)
NO_CONTROLS = Controls()


class Pace(Enum):
    """The activity in progress, which decides when a tick without audio is due."""

    IDLE = auto()
    LISTENING = auto()  # the user speaks: silence follows at the pace of speech
    SPEAKING = auto()  # a spoken answer: audio and silence at the pace of speech, no faster
    WRITING = auto()  # a text-only answer: silence at `TEXT_SPEED`


class Stretch(NamedTuple):
    """Bytes of the client's microphone, counted from its first."""

    begin: int
    length: int


class DueTick(NamedTuple):
    """The audio and the controls of one tick."""

    pcm: bytes
    controls: Controls = NO_CONTROLS
    microphone: Stretch | None = None  # the part of the audio that the client's microphone has recorded


class ServerClock:
    """Takes audio and controls as they come, and returns ticks when they are due."""

    def __init__(self, tick_ms: int, keep_alive_s: float, now: Callable[[], float] = time.monotonic):
        """Create an idle clock; `keep_alive_s`: interval of ticks while idle; `now`: current time in seconds."""
        self._now = now
        self._tick_s = tick_ms / 1000
        self._tick_bytes = tick_ms * BYTES_A_SECOND // 1000
        self._keep_alive_s = keep_alive_s
        self._held = bytearray()
        self._received = 0  # bytes of the microphone, of which the last ones are held
        self._sent = 0  # bytes of ticks
        self._stretches = deque([(0, Stretch(0, 0))], maxlen=MAX_STRETCHES)  # offset in the ticks, microphone's part
        self._committed: deque[DueTick] = deque()
        self._controls: deque[Controls] = deque()
        self.changed = asyncio.Event()  # set when the next tick may be due earlier than `poll` returned
        self._has_space = asyncio.Event()
        self._has_space.set()
        self._received_s = -RECENT_S  # time of the latest audio
        self._due_s = 0.0  # time at which the next tick is due
        self.holds = False  # audio waits for `commit`
        self._pace = Pace.IDLE

    @property
    def held_ms(self) -> int:
        """Duration of the audio that waits, in milliseconds."""
        return len(self._held) * 1000 // BYTES_A_SECOND

    @property
    def committed_ms(self) -> float:
        """Duration of the committed ticks that have not been sent, in milliseconds."""
        return len(self._committed) * self._tick_s * 1000

    def follow(self, pace: Pace, holds: bool) -> None:
        """Set what is in progress, and whether audio waits for `commit`."""
        self._pace, self.holds = pace, holds
        self.changed.set()

    async def append(self, pcm: bytes) -> None:
        """Add audio of the microphone; wait while a minute of it has not been sent.

        If audio waits for `commit`, the newest minute is held.
        """
        if not self.holds:
            await self._has_space.wait()
        self._hold(pcm)
        if self.holds:
            del self._held[: max(0, len(self._held) - MAX_HELD_BYTES)]
        self._received_s = self._now()
        if len(self._held) > MAX_HELD_BYTES and not self.holds:
            self._has_space.clear()
        self.changed.set()

    def clear(self) -> None:
        """Drop the audio that waits."""
        self._held.clear()
        self._has_space.set()

    def request(self, **controls: Any) -> None:
        """Send controls with a tick that does not wait for audio and follows what was committed before.

        Controls share a tick if the engine applies them in the order of the requests.
        """
        added = Controls(**controls)
        if self._committed:
            self._committed.append(DueTick(bytes(self._tick_bytes), added))
        elif self._controls and max(_positions(self._controls[-1])) < min(_positions(added)):
            self._controls[-1] = replace(self._controls[-1], **controls)
        else:
            self._controls.append(added)
        self.changed.set()

    def send_whole(
        self,
        pcm: bytes,
        first: Controls = NO_CONTROLS,
        last: Controls = NO_CONTROLS,
        microphone_from: int | None = None,
    ) -> None:
        """Send audio as whole ticks, padded with silence, with controls on the first and the last tick.

        `microphone_from`: offset of the audio in the microphone's; None: the microphone has not recorded it.
        """
        self._committed += [DueTick(bytes(self._tick_bytes), controls) for controls in self._controls]
        self._controls.clear()
        size = self._tick_bytes
        parts = [pcm[start : start + size].ljust(size, b"\0") for start in range(0, max(1, len(pcm)), size)]
        for number, part in enumerate(parts):
            controls = first if number == 0 else NO_CONTROLS
            if number == len(parts) - 1:
                controls = replace(controls, **{name: getattr(last, name) for name in _names(last)})
            begin, length = number * size, min(size, len(pcm) - number * size)
            microphone = None if microphone_from is None else Stretch(microphone_from + begin, length)
            self._committed.append(DueTick(part, controls, microphone))
        self.changed.set()

    def commit(self, rest: bytes, first: Controls = NO_CONTROLS, last: Controls = NO_CONTROLS) -> None:
        """Send the audio that waits, and `rest`; the user's turn ends with it."""
        self._hold(rest)
        last = replace(last, commit=True)
        self.send_whole(bytes(self._held), first, last, microphone_from=self._received - len(self._held))
        self.clear()

    def microphone_ms(self, at_ms: float) -> float:
        """Map a time on the tick clock to the microphone's own audio; inserted silence is not counted."""
        at = at_ms * BYTES_A_SECOND / 1000
        earlier = (stretch for stretch in reversed(self._stretches) if stretch[0] <= at)
        begin, microphone = next(earlier, (0, Stretch(0, 0)))
        return (microphone.begin + min(at - begin, microphone.length)) * 1000 / BYTES_A_SECOND

    def poll(self) -> DueTick | float | None:
        """Return the next tick if it is due; otherwise the seconds until it is due, None before `changed` is set."""
        self.changed.clear()
        self._due_s = self._due_s or self._now()
        tick, wait_s = self._take()
        if tick is None:
            return wait_s
        self._note_stretch(tick)
        now = self._now()
        self._due_s = min(max(self._due_s, now - LATE_S), now) + self._tick_s
        return tick

    async def next(self) -> DueTick:
        """Return the next tick as soon as it is due."""
        while not isinstance(found := self.poll(), DueTick):
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.changed.wait(), found)
        return found

    def _hold(self, pcm: bytes) -> None:
        self._held += pcm
        self._received += len(pcm)

    def _note_stretch(self, tick: DueTick) -> None:
        if tick.microphone:
            begin, before = self._stretches[-1]
            if begin + before.length == self._sent and before.begin + before.length == tick.microphone.begin:
                self._stretches[-1] = begin, Stretch(before.begin, before.length + tick.microphone.length)
            else:
                self._stretches.append((self._sent, tick.microphone))
        self._sent += self._tick_bytes

    def _take(self) -> tuple[DueTick | None, float | None]:
        """Return a tick that is due, or the seconds until one may be; None: until something changes."""
        now = self._now()
        if self._controls and (not self._held or self.holds):
            return DueTick(bytes(self._tick_bytes), self._controls.popleft()), 0
        if self._committed:
            return self._committed.popleft(), 0
        until_due_s = self._due_s - now
        if len(self._held) >= self._tick_bytes and not self.holds:
            if self._pace is Pace.SPEAKING and until_due_s > 0:
                return None, until_due_s
            return self._tick_of_held(), 0
        silence_s = self._keep_alive_s
        if self._pace is not Pace.IDLE or self._controls:
            silence_s = self._tick_s / TEXT_SPEED - self._tick_s if self._pace is Pace.WRITING else 0.0
            if now - self._received_s < RECENT_S and not self.holds:
                silence_s = LATE_S
        if until_due_s + silence_s > 0:
            return None, until_due_s + silence_s
        return self._tick_of_held(), 0

    def _tick_of_held(self) -> DueTick:
        """Return a tick of the audio that waits, padded with silence."""
        size = 0 if self.holds else self._tick_bytes
        pcm = bytes(self._held[:size])
        microphone = Stretch(self._received - len(self._held), len(pcm)) if pcm else None
        del self._held[:size]
        if len(self._held) <= MAX_HELD_BYTES / 2:
            self._has_space.set()
        controls = self._controls.popleft() if self._controls else NO_CONTROLS
        return DueTick(pcm.ljust(self._tick_bytes, b"\0"), controls, microphone)


def _names(controls: Controls) -> list[str]:
    """Return the names of the controls that are requested."""
    return [name for name in CONTROLS if getattr(controls, name) != getattr(NO_CONTROLS, name)]


def _positions(controls: Controls) -> list[int]:
    """Return the positions of the requested controls in the order in which the engine applies them."""
    return [ORDER[name] for name in _names(controls)]
