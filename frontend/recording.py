"""Keeps conversations: a stereo WAV, the user at the left and the voice at the right in one time, and a file of events.

48 kHz is a whole multiple of both rates. What lies between two samples is a straight line, and each third sample of the
left channel and each second of the right is what was said and heard, unchanged: `read_recording` gets it back.
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
LEFT, RIGHT = RATE // INPUT_HZ, RATE // OUTPUT_HZ  # frames a sample
MAX_SEED = 2**63 - 1
MAX_WAITING = 300  # ticks that a disk may be behind by


class RecordingError(ValueError):
    """A recording cannot be read."""


class Recorder:
    """Writes one conversation, on a thread of its own: a slow disk keeps nobody waiting."""

    def __init__(self, folder: Path, conversation: str):
        self._path = folder / f"{datetime.now(timezone.utc):%Y%m%d-%H%M%S}-{conversation}"
        self._thread = ThreadPoolExecutor(1, "recording")
        self._asked: deque[TickIn] = deque()  # whose answer has not come
        self._writing: deque[Future[None]] = deque()  # ticks on the thread, oldest first
        self._last = (0, 0)  # samples, from which the next line is drawn
        self._wav: wave.Wave_write | None = None
        self._ticks = 0
        self._has_failed = False

    async def ticks(self, ticks: AsyncIterator[TickIn]) -> AsyncIterator[TickIn]:
        """Passes the conversation's ticks on; a seed is given to one without, so that it can be replayed."""
        async for tick in ticks:
            if tick.start and "seed" not in tick.options:
                tick = replace(tick, options={**tick.options, "seed": secrets.randbelow(MAX_SEED)})
            self._asked.append(tick)
            yield tick

    def answered(self, answer: TickOut | TickError) -> None:
        """The answer to the oldest tick."""
        asked = self._asked.popleft()
        while self._writing and self._writing[0].done():
            self._writing.popleft()
        if len(self._writing) >= MAX_WAITING and not self._has_failed:
            self._has_failed = True
            logger.error("%s takes too long to write, the conversation goes on without", self._path)
        if not self._has_failed:
            self._writing.append(self._thread.submit(self._write, asked, answer))

    def end(self) -> None:
        """Nothing follows; what waits is still written."""
        self._thread.submit(self._close)
        self._thread.shutdown(wait=False)

    def _write(self, asked: TickIn, answer: TickOut | TickError) -> None:
        if self._has_failed:
            return
        try:
            if self._wav is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._wav = wave.open(str(self._path.with_suffix(".wav")), "wb")  # noqa: SIM115 (it is open for long)
                self._wav.setparams((2, 2, RATE, 0, "NONE", ""))
            said = np.frombuffer(asked.pcm, np.int16)
            heard = np.zeros(len(said) * LEFT // RIGHT, np.int16)
            entry: dict[str, Any] = {"tick": self._ticks, "parameters": asked.parameters}
            if isinstance(answer, TickError):
                entry["error"] = str(answer)
            else:
                heard = np.frombuffer(answer.pcm, np.int16)
                entry |= {"text": answer.text, "events": [event.to_json() for event in answer.events]}
            stereo = np.stack([_drawn(said, LEFT, self._last[0]), _drawn(heard, RIGHT, self._last[1])], axis=1)
            self._last = int(said[-1]), int(heard[-1])
            self._wav.writeframes(stereo.tobytes())
            with self._path.with_suffix(".jsonl").open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(entry, ensure_ascii=False) + "\n")
            self._ticks += 1
        except Exception:  # of whatever kind: it must not end a conversation, and the log tells
            self._has_failed = True
            logger.exception("%s cannot be written, the conversation goes on without", self._path)

    def _close(self) -> None:
        try:
            if self._wav:
                self._wav.close()
        except OSError:
            logger.exception("%s cannot be written", self._path)


async def recorded(
    converse: Converse, folder: Path, sequence_id: int, ticks: AsyncIterator[TickIn]
) -> AsyncGenerator[TickOut | TickError]:
    """`converse`, kept in `folder`."""
    recorder = Recorder(folder, str(sequence_id))
    try:
        async for answer in converse(sequence_id, recorder.ticks(ticks)):
            recorder.answered(answer)
            yield answer
    finally:
        recorder.end()


@dataclass(frozen=True)
class RecordedTick:
    """One tick: what was said, and what came of it."""

    said: np.ndarray  # int16 at 16 kHz
    heard: np.ndarray  # int16 at 24 kHz
    parameters: Mapping[str, Any]
    text: str = ""
    events: list[dict[str, Any]] = field(default_factory=list)
    error: str | None = None


def read_recording(path: Path) -> list[RecordedTick]:
    """The ticks of a recording, by its WAV; its `.jsonl` lies beside it. Raises `RecordingError`."""
    try:
        with wave.open(str(path), "rb") as wav:
            if (wav.getnchannels(), wav.getsampwidth(), wav.getframerate()) != (2, 2, RATE):
                raise RecordingError(f"{path} is no recording, expected 16 bit stereo at {RATE} Hz")
            frames = np.frombuffer(wav.readframes(wav.getnframes()), np.int16).reshape(-1, 2)
        lines = path.with_suffix(".jsonl").read_text(encoding="utf-8").split("\n")  # text may have other line breaks
        entries = [json.loads(line) for line in lines if line]
    except (OSError, EOFError, wave.Error, ValueError) as error:
        if isinstance(error, RecordingError):
            raise
        raise RecordingError(f"{path} cannot be read with its .jsonl: {error}") from error
    if not entries or len(frames) % len(entries):
        raise RecordingError(f"{path} has {len(frames)} frames and {len(entries)} ticks, expected whole ticks")
    size = len(frames) // len(entries)
    ticks = []
    for entry, part in zip(entries, frames.reshape(len(entries), size, 2), strict=True):
        known = {name: entry[name] for name in ("parameters", "text", "events", "error") if name in entry}
        ticks.append(RecordedTick(part[LEFT - 1 :: LEFT, 0].copy(), part[RIGHT - 1 :: RIGHT, 1].copy(), **known))
    return ticks


def _drawn(samples: np.ndarray, frames: int, last: int) -> np.ndarray:
    """Straight lines from each sample to the next, `frames` of them each; the last of those is the sample itself."""
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
