"""Recordings of conversations: a stereo WAV, the user at the left and the assistant at the right, and a file of events.

48 kHz is a whole multiple of both rates. The samples are connected by straight lines; each third frame of the left
channel and each second of the right is a sample of the original audio, unchanged: `read_recording` returns them.
"""

from __future__ import annotations

import json
import logging
import secrets
import wave
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from config import Settings
from config.settings import INPUT_HZ, OUTPUT_HZ
from frontend.plugins import Plugins
from frontend.tick import Converse, TickError, TickIn, TickOut

logger = logging.getLogger(__name__)
RATE = 48_000
LEFT, RIGHT = RATE // INPUT_HZ, RATE // OUTPUT_HZ  # frames for each sample of the user's and the assistant's audio
MAX_SEED = 2**63 - 1
MAX_WAITING = 300  # ticks that may wait for the disk


class RecordingError(ValueError):
    """A recording cannot be read."""


class Recorder:
    """Writes one conversation in a separate thread, so that a slow disk does not delay the conversation."""

    def __init__(self, folder: Path, conversation: str):
        self._path = folder / f"{datetime.now(timezone.utc):%Y%m%d-%H%M%S}-{conversation}"
        self._thread = ThreadPoolExecutor(1, "recording")
        self._in_flight: deque[TickIn] = deque()  # ticks without an answer
        self._writing: deque[Future[None]] = deque()  # ticks in the thread, oldest first
        self._last = (0, 0)  # latest samples of both channels, where the next lines begin
        self._wav: wave.Wave_write | None = None
        self._ticks = 0
        self._has_failed = False

    async def ticks(self, ticks: AsyncIterator[TickIn]) -> AsyncIterator[TickIn]:
        """Yield the conversation's ticks; a conversation without a seed receives one, so that it can be replayed."""
        async for tick in ticks:
            if tick.start and "seed" not in tick.options:
                tick = replace(tick, options={**tick.options, "seed": secrets.randbelow(MAX_SEED)})
            self._in_flight.append(tick)
            yield tick

    def answered(self, answer: TickOut | TickError) -> None:
        """Write the oldest tick in flight with its answer."""
        tick = self._in_flight.popleft()
        while self._writing and self._writing[0].done():
            self._writing.popleft()
        if len(self._writing) >= MAX_WAITING and not self._has_failed:
            self._has_failed = True
            logger.error("%s takes too long to write, the conversation continues without a recording", self._path)
        if not self._has_failed:
            self._writing.append(self._thread.submit(self._write, tick, answer))

    def end(self) -> None:
        """Close the recording after the ticks that wait."""
        self._thread.submit(self._close)
        self._thread.shutdown(wait=False)

    def _write(self, tick: TickIn, answer: TickOut | TickError) -> None:
        if self._has_failed:
            return
        try:
            if self._wav is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._wav = wave.open(str(self._path.with_suffix(".wav")), "wb")  # noqa: SIM115 (open until `end`)
                self._wav.setparams((2, 2, RATE, 0, "NONE", ""))
            user = np.frombuffer(tick.pcm, np.int16)
            assistant = np.zeros(len(user) * LEFT // RIGHT, np.int16)
            entry: dict[str, Any] = {"tick": self._ticks, "parameters": tick.parameters}
            if isinstance(answer, TickError):
                entry["error"] = str(answer)
            else:
                assistant = np.frombuffer(answer.pcm, np.int16)
                entry |= {"text": answer.text, "events": [event.to_json() for event in answer.events]}
            channels = _lines(user, LEFT, self._last[0]), _lines(assistant, RIGHT, self._last[1])
            self._last = int(user[-1]), int(assistant[-1])
            self._wav.writeframes(np.stack(channels, axis=1).tobytes())
            with self._path.with_suffix(".jsonl").open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(entry, ensure_ascii=False) + "\n")
            self._ticks += 1
        except Exception:  # a failure of a recording must not end its conversation; the log has it
            self._has_failed = True
            logger.exception("%s cannot be written, the conversation continues without a recording", self._path)

    def _close(self) -> None:
        try:
            if self._wav:
                self._wav.close()
        except OSError:
            logger.exception("%s cannot be written", self._path)


async def recorded(
    converse: Converse, folder: Path, sequence_id: int, ticks: AsyncIterator[TickIn]
) -> AsyncGenerator[TickOut | TickError]:
    """Yield the answers of `converse`, and record the conversation in `folder`."""
    recorder = Recorder(folder, str(sequence_id))
    try:
        async for answer in converse(sequence_id, recorder.ticks(ticks)):
            recorder.answered(answer)
            yield answer
    finally:
        recorder.end()


@dataclass(frozen=True)
class RecordedTick:
    """One tick of a recording."""

    user: np.ndarray  # the user's audio, int16 at 16 kHz
    assistant: np.ndarray  # the assistant's audio, int16 at 24 kHz
    parameters: Mapping[str, Any]
    text: str = ""
    events: list[dict[str, Any]] = field(default_factory=list)
    error: str | None = None


def read_recording(path: Path) -> list[RecordedTick]:
    """Return the ticks of a recording, by its WAV; its `.jsonl` is in the same folder. Raises `RecordingError`."""
    try:
        with wave.open(str(path), "rb") as wav:
            if (wav.getnchannels(), wav.getsampwidth(), wav.getframerate()) != (2, 2, RATE):
                raise RecordingError(f"{path}: expected a recording, 16 bit stereo at {RATE} Hz, got another format")
            frames = np.frombuffer(wav.readframes(wav.getnframes()), np.int16).reshape(-1, 2)
        lines = path.with_suffix(".jsonl").read_text(encoding="utf-8").split("\n")  # text may have other line breaks
        entries = [json.loads(line) for line in lines if line]
    except (OSError, EOFError, wave.Error, ValueError) as error:
        if isinstance(error, RecordingError):
            raise
        raise RecordingError(f"{path} cannot be read with its .jsonl: {error}") from error
    if not entries or len(frames) % len(entries):
        raise RecordingError(f"{path}: expected whole ticks, got {len(frames)} frames for {len(entries)} ticks")
    size = len(frames) // len(entries)
    ticks = []
    for entry, part in zip(entries, frames.reshape(len(entries), size, 2), strict=True):
        known = {name: entry[name] for name in ("parameters", "text", "events", "error") if name in entry}
        ticks.append(RecordedTick(part[LEFT - 1 :: LEFT, 0].copy(), part[RIGHT - 1 :: RIGHT, 1].copy(), **known))
    return ticks


def _lines(samples: np.ndarray, frames: int, last: int) -> np.ndarray:
    """Return straight lines from each sample to the next, `frames` each; the last frame of a line is the sample."""
    before = np.concatenate([[last], samples[:-1]]).astype(np.int32)
    steps = np.arange(1, frames + 1)
    lines = before[:, None] + (samples.astype(np.int32) - before)[:, None] * steps // frames
    return np.asarray(lines.reshape(-1), np.int16)


def add_to(plugins: Plugins, settings: Settings) -> None:
    """Record every conversation in `bridge.record_folder`."""
    folder = Path(settings.bridge.record_folder)

    def record(converse: Converse) -> Converse:
        return partial(recorded, converse, folder)

    plugins.decorators.append(record)
