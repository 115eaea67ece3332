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
from contract.state import Entry, InputState, State
from frontend.failover.mover import REPLAY_IN_FLIGHT
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
            reading = _replay(settings, turns)
            took_ms = [1000 * await _read(link, reading, settings) for _ in range(TIMES)]
            found.append(Move(length_s, turns, len(reading.ticks), float(np.median(took_ms)), max(took_ms)))
        return found
    finally:
        await link.close()


def _replay(settings: Settings, turns: int) -> Replay:
    """Return the replay of a conversation of `turns` turns, the users' of noise."""
    log, tick_ms = ReplayLog(settings), settings.audio.tick_ms
    random = np.random.RandomState(0)
    entries: list[Entry] = []
    for turn in range(1, turns + 1):
        begin_ms, end_ms = log.clock_ms, log.clock_ms + SPOKEN_TICKS * tick_ms
        said, answer = Entry(turn, "user", "", begin_ms, end_ms), Entry(turn, "assistant", ANSWER)
        speaking = State(tuple(entries), input=InputState.SPEECH, open_turn=turn, open_from_ms=begin_ms)
        states = {
            0: speaking,
            SPOKEN_TICKS: State((*entries, said), answering=turn, input_from_ms=end_ms),
            SPOKEN_TICKS + 1: State((*entries, said, answer), input_from_ms=end_ms, next_turn=turn + 1),
        }
        for tick in range(SPOKEN_TICKS + ANSWER_TICKS):
            loudness = LOUDNESS if tick < SPOKEN_TICKS else 0
            pcm = random.randint(-loudness, loudness + 1, settings.audio.input_samples).astype(np.int16)
            log.sent(TickIn(pcm.tobytes(), start=turn == 1 and tick == 0))
            log.answered([], states.get(tick))
        entries += [said, answer]
    return log.replay()


async def _read(link: TritonLink, reading: Replay, settings: Settings) -> float:
    """Seconds until the tick after a reading is answered."""
    room = asyncio.Semaphore(REPLAY_IN_FLIGHT)
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
