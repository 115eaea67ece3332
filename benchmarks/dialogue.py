"""A client that talks as fast as the server answers, and keeps all that it hears.

The server's clock is the sound that it is sent, so a minute of conversation takes as long as a minute's ticks.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from rich.progress import Progress
from websockets.asyncio.client import ClientConnection, connect

from config import Settings
from config.settings import INPUT_HZ, OUTPUT_HZ

LONGEST_TICK_S = 0.32
FRAME = INPUT_HZ // 10  # samples
AHEAD_S = 0.7  # of sound that may be sent before its answer has come
ANSWER_WITHIN_S = 20.0  # of the input clock
TAIL = INPUT_HZ * 2 // 3  # samples of silence in which an answer's last samples come

Job = TypeVar("Job")
Found = TypeVar("Found")


class DialogueError(RuntimeError):
    """The server refused, in its own words; `code` is the protocol's, if it told one."""

    def __init__(self, message: str, code: str = ""):
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Answer:
    """What the server said to one turn."""

    text: str
    sound: np.ndarray  # int16 at 24 kHz, from its first tick on
    spoken_s: float | None  # None if it did not end in time


class Dialogue:
    """One conversation; made by `dialogue`. `events` are all that came, `sounds` a tick each."""

    def __init__(self, socket: ClientConnection):
        self._socket = socket
        self._sent = self._received = 0  # samples
        self._news, self._is_over = asyncio.Event(), False
        self.events: list[dict[str, Any]] = []
        self.sounds: list[np.ndarray] = []
        self._sounds_before: list[int] = []  # one an event: how many ticks of sound came before it

    async def ask(self, kind: str, **details: Any) -> None:
        """Sends a control."""
        await self._socket.send(json.dumps({"type": kind, **details}))

    async def say(self, samples: np.ndarray) -> None:
        """Sends samples, int16 at 16 kHz. Raises `DialogueError` with an error's words."""
        for start in range(0, len(samples), FRAME):
            while not self._is_over and self._sent / INPUT_HZ - self._received / OUTPUT_HZ > AHEAD_S:
                self._news.clear()
                await self._news.wait()
            self._raise_errors()
            part = samples[start : start + FRAME]
            await self._socket.send(part.tobytes())
            self._sent += len(part)

    async def wait_for(self, kind: str, since: int) -> int | None:
        """Silence until there is an event of a kind at or after the place `since`; its place, None if none comes."""
        limit = self._sent + ANSWER_WITHIN_S * INPUT_HZ
        while self._sent < limit:
            for place in range(since, len(self.events)):
                if self.events[place]["type"] == kind:
                    return place
            await self.say(np.zeros(FRAME, np.int16))
        return None

    async def answer(self, since: int) -> Answer:
        """The answer that begins at or after an event's place, once it has ended."""
        done = await self.wait_for("answer_done", since)
        if done is None:
            return Answer(self.text(since, len(self.events)), np.zeros(0, np.int16), None)
        await self.say(np.zeros(TAIL, np.int16))
        await self._hear_all()
        begun = next((p for p in range(since, done + 1) if self.events[p]["type"] == "answer_started"), done)
        spoken_s = self.events[done]["spoken_ms"] / 1000
        return Answer(self.text(since, done), self.sound(begun, len(self.events)), spoken_s)

    async def _hear_all(self) -> None:
        """Until every whole tick that was sent has been answered. Raises `DialogueError` with an error's words."""
        while self._sent / INPUT_HZ - self._received / OUTPUT_HZ > LONGEST_TICK_S:
            self._raise_errors()
            self._news.clear()
            await asyncio.wait_for(self._news.wait(), ANSWER_WITHIN_S)

    def sound(self, begin: int, end: int) -> np.ndarray:
        """What was heard from one event's place to another's."""
        places = [*self._sounds_before, len(self.sounds)]
        heard = self.sounds[places[begin] : places[min(end, len(places) - 1)]]
        return np.concatenate(heard) if heard else np.zeros(0, np.int16)

    def text(self, begin: int, end: int) -> str:
        """What was said in words from one event's place to another's."""
        return "".join(event["text"] for event in self.events[begin:end] if event["type"] == "text")

    def _raise_errors(self) -> None:
        for event in self.events:
            if event["type"] == "error":
                raise DialogueError(event["message"], event["code"])
        if self._is_over:
            raise DialogueError("the server closed in mid-conversation")

    async def listen(self) -> None:
        """Keeps what comes, until the server closes."""
        try:
            async for message in self._socket:
                if isinstance(message, bytes):
                    self.sounds.append(np.frombuffer(message, np.int16))
                    self._received += len(self.sounds[-1])
                else:
                    self._sounds_before.append(len(self.sounds))
                    self.events.append(json.loads(message))
                self._news.set()
        finally:
            self._is_over = True
            self._news.set()


@asynccontextmanager
async def dialogue(settings: Settings, options: str = "detection=manual") -> AsyncIterator[Dialogue]:
    """A conversation with the server of these settings. Raises `DialogueError` with an error's words."""
    url = f"{settings.bridge.url}/ws/pcm16?{options}"
    async with connect(url, max_size=None, proxy=None) as socket:
        conversation = Dialogue(socket)
        listening = asyncio.create_task(conversation.listen())
        try:
            yield conversation
            await conversation.ask("end")
            await listening  # until the bridge has closed: its place is free again then
        finally:
            listening.cancel()


def write(found: object, path: Path) -> None:
    """What dialogues gave, dataclasses in sequences, as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, default=asdict, indent=1), encoding="utf-8")


async def at_once(
    jobs: Iterable[Job], hold: Callable[[Job], Awaitable[Found]], conversations: int, what: str
) -> Sequence[Found]:
    """Holds a conversation for each job, so many at once, with a progress bar; what was found, in the jobs' order."""
    numbered = list(enumerate(jobs))
    waiting = iter(numbered)
    found: dict[int, Found] = {}
    with Progress(transient=True) as progress:
        task = progress.add_task(what, total=len(numbered))

        async def worker() -> None:
            for number, job in waiting:
                found[number] = await hold(job)
                progress.advance(task)

        await asyncio.gather(*(worker() for _ in range(conversations)))
    return [found[number] for number, _ in numbered]
