"""A lockstep client of /ws/pcm16: it sends audio as fast as the server answers, and keeps every event and sample.

The server's clock is the audio that it receives, so a minute of conversation takes as long as a minute's ticks.
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

MAX_TICK_S = 0.32
FRAME = INPUT_HZ // 10  # samples in one message
MAX_AHEAD_S = 0.7  # audio that may be sent before its response has been received, in seconds
ANSWER_TIMEOUT_S = 20.0  # time limit of an answer, on the clock of the sent audio
TAIL = INPUT_HZ * 2 // 3  # samples of silence during which an answer's last samples arrive

Job = TypeVar("Job")
Result = TypeVar("Result")


class DialogueError(RuntimeError):
    """An error that the server reported; `code` is the protocol's error code, or empty."""

    def __init__(self, message: str, code: str = ""):
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Answer:
    """The server's answer to one turn."""

    text: str
    audio: np.ndarray  # int16 at 24 kHz, from the answer's first tick on
    spoken_s: float | None  # None if the answer did not end within ANSWER_TIMEOUT_S


class Dialogue:
    """One conversation; made by `dialogue`. `events` are all received events, `audio` has one array a tick."""

    def __init__(self, socket: ClientConnection):
        self._socket = socket
        self._sent = self._received = 0  # samples
        self._changed, self._closed = asyncio.Event(), False
        self.events: list[dict[str, Any]] = []
        self.audio: list[np.ndarray] = []
        self._ticks_before: list[int] = []  # ticks of audio received before each event

    async def send_control(self, kind: str, **details: Any) -> None:
        """Send a control."""
        await self._socket.send(json.dumps({"type": kind, **details}))

    async def send_audio(self, samples: np.ndarray) -> None:
        """Send samples, int16 at 16 kHz. Raises `DialogueError` if the server reported an error or closed."""
        for start in range(0, len(samples), FRAME):
            while not self._closed and self._sent / INPUT_HZ - self._received / OUTPUT_HZ > MAX_AHEAD_S:
                self._changed.clear()
                await self._changed.wait()
            self._raise_errors()
            frame = samples[start : start + FRAME]
            await self._socket.send(frame.tobytes())
            self._sent += len(frame)

    async def wait_for(self, kind: str, since: int) -> int | None:
        """Send silence until an event of a kind is received; return its index, which is `since` or later, or None."""
        limit = self._sent + ANSWER_TIMEOUT_S * INPUT_HZ
        while self._sent < limit:
            for index in range(since, len(self.events)):
                if self.events[index]["type"] == kind:
                    return index
            await self.send_audio(np.zeros(FRAME, np.int16))
        return None

    async def wait_for_answer(self, since: int) -> Answer:
        """Return the answer that begins at the event with index `since` or later, once the answer has ended."""
        done = await self.wait_for("answer_done", since)
        if done is None:
            return Answer(self.text_between(since, len(self.events)), np.zeros(0, np.int16), None)
        await self.send_audio(np.zeros(TAIL, np.int16))
        await self._receive_all()
        first = next((i for i in range(since, done + 1) if self.events[i]["type"] == "answer_started"), done)
        spoken_s = self.events[done]["spoken_ms"] / 1000
        return Answer(self.text_between(since, done), self.audio_between(first, len(self.events)), spoken_s)

    async def _receive_all(self) -> None:
        """Wait until the response to every whole tick has been received. Raises `DialogueError`."""
        while self._sent / INPUT_HZ - self._received / OUTPUT_HZ > MAX_TICK_S:
            self._raise_errors()
            self._changed.clear()
            await asyncio.wait_for(self._changed.wait(), ANSWER_TIMEOUT_S)

    def audio_between(self, begin: int, end: int) -> np.ndarray:
        """Return the audio received between the events with indices `begin` and `end`, int16 at 24 kHz."""
        ticks = [*self._ticks_before, len(self.audio)]
        received = self.audio[ticks[begin] : ticks[min(end, len(ticks) - 1)]]
        return np.concatenate(received) if received else np.zeros(0, np.int16)

    def text_between(self, begin: int, end: int) -> str:
        """Return the assistant's text in the events from index `begin` to `end`, `end` excluded."""
        return "".join(event["text"] for event in self.events[begin:end] if event["type"] == "text")

    def _raise_errors(self) -> None:
        for event in self.events:
            if event["type"] == "error":
                raise DialogueError(event["message"], event["code"])
        if self._closed:
            raise DialogueError("the server closed the connection before the conversation had ended")

    async def receive(self) -> None:
        """Store every message until the server closes the connection."""
        try:
            async for message in self._socket:
                if isinstance(message, bytes):
                    self.audio.append(np.frombuffer(message, np.int16))
                    self._received += len(self.audio[-1])
                else:
                    self._ticks_before.append(len(self.audio))
                    self.events.append(json.loads(message))
                self._changed.set()
        finally:
            self._closed = True
            self._changed.set()


@asynccontextmanager
async def dialogue(settings: Settings, options: str = "detection=manual") -> AsyncIterator[Dialogue]:
    """Hold a conversation with the server of these settings. Raises `DialogueError`."""
    url = f"{settings.bridge.url}/ws/pcm16?{options}"
    async with connect(url, max_size=None, proxy=None) as socket:
        conversation = Dialogue(socket)
        receiving = asyncio.create_task(conversation.receive())
        try:
            yield conversation
            await conversation.send_control("end")
            await receiving  # the bridge has closed: the slot is free again
        finally:
            receiving.cancel()


def write_json(results: object, path: Path) -> None:
    """Write results (dataclasses in sequences) as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, default=asdict, indent=1), encoding="utf-8")


async def run_concurrently(
    jobs: Iterable[Job], hold: Callable[[Job], Awaitable[Result]], conversations: int, description: str
) -> Sequence[Result]:
    """Hold one conversation for each job, `conversations` at once, with a progress bar; return results in job order."""
    numbered = list(enumerate(jobs))
    waiting = iter(numbered)
    results: dict[int, Result] = {}
    with Progress(transient=True) as progress:
        task = progress.add_task(description, total=len(numbered))

        async def worker() -> None:
            for number, job in waiting:
                results[number] = await hold(job)
                progress.advance(task)

        await asyncio.gather(*(worker() for _ in range(conversations)))
    return [results[number] for number, _ in numbered]
