"""What it costs to move a conversation: how long another server takes to read it, by its length."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import numpy as np
from rich.progress import track
from rich.table import Table

from benchmarks.paced import LOUDNESS
from config import Settings
from frontend.failover.mover import READ_AT_ONCE
from frontend.failover.replay_log import Replay, ReplayLog
from frontend.tick import TickError, TickIn, new_sequence_id
from frontend.triton import TritonLink

LENGTHS_S = (8, 24, 48, 96, 176)
SPOKEN_TICKS, ANSWER_TICKS = 15, 10  # a turn: 4.8 s of the user, 3.2 s of an answer
ANSWER = "That is an answer of a length as they are given."
TIMES = 5


@dataclass(frozen=True)
class Move:
    """Readings of a conversation of a length."""

    conversation_s: float
    turns: int
    ticks: int  # that are sent for it
    p50_ms: float  # until the next tick is answered
    slowest_ms: float


def bench_move(settings: Settings) -> list[Move]:
    """A row for each length. Raises `TickError`."""
    return asyncio.run(_bench(settings))


async def _bench(settings: Settings) -> list[Move]:
    link = TritonLink(settings)
    try:
        found = []
        for length_s in track(LENGTHS_S, description="readings", transient=True):
            turns = round(length_s * 1000 / settings.audio.tick_ms / (SPOKEN_TICKS + ANSWER_TICKS))
            reading = _reading(settings, turns)
            took_ms = [1000 * await _read(link, reading, settings) for _ in range(TIMES)]
            found.append(Move(length_s, turns, len(reading.ticks), float(np.median(took_ms)), max(took_ms)))
        return found
    finally:
        await link.close()


def _reading(settings: Settings, turns: int) -> Replay:
    """Of a conversation of so many turns, the users' of noise."""
    history, tick_ms = ReplayLog(settings), settings.audio.tick_ms
    random = np.random.RandomState(0)
    for turn in range(1, turns + 1):
        begin_ms = history.clock_ms
        for tick in range(SPOKEN_TICKS + ANSWER_TICKS):
            loudness = LOUDNESS if tick < SPOKEN_TICKS else 0
            pcm = random.randint(-loudness, loudness + 1, settings.audio.input_samples).astype(np.int16)
            history.ask(TickIn(pcm.tobytes(), start=not history.has_begun))
            end_ms = begin_ms + SPOKEN_TICKS * tick_ms
            span = {"audio_start_ms": begin_ms, "audio_end_ms": end_ms}
            speaks = {"type": "speech_started", "at_ms": begin_ms}
            committed = {"type": "committed", "at_ms": end_ms, "turn": turn, **span}
            started = {"type": "answer_started", "at_ms": end_ms, "turn": turn}
            done = {"type": "answer_done", "at_ms": history.clock_ms, "turn": turn, "text": ANSWER}
            events = {0: [speaks], SPOKEN_TICKS: [committed, started], SPOKEN_TICKS + 1: [done]}
            history.answer(events.get(tick, []))
    return history.reading()


async def _read(link: TritonLink, reading: Replay, settings: Settings) -> float:
    """Seconds until the tick after a reading is answered."""
    room = asyncio.Semaphore(READ_AT_ONCE)
    silence = bytes(2 * settings.audio.input_samples)

    async def ticks() -> AsyncIterator[TickIn]:
        for tick in reading.ticks:
            await room.acquire()
            yield tick
        yield TickIn(silence, end=True)

    begun_s = time.monotonic()
    async for answer in link.converse(new_sequence_id(), ticks()):
        if isinstance(answer, TickError):
            raise answer
        room.release()
    return time.monotonic() - begun_s


def show(moves: Sequence[Move]) -> Table:
    """A row a length."""
    table = Table("conversation", "turns", "ticks sent", "read in, p50", "slowest", "of its length")
    for move in moves:
        table.add_row(
            f"{move.conversation_s:g} s", str(move.turns), str(move.ticks), f"{move.p50_ms:.0f} ms",
            f"{move.slowest_ms:.0f} ms", f"{move.p50_ms / 1000 / move.conversation_s:.1%}",
        )  # fmt: skip
    return table
