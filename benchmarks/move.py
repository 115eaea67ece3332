"""Cost of moving a conversation to another server: the time of its replay, by the conversation's length."""

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
USER_TICKS, ANSWER_TICKS = 15, 10  # a turn: 4.8 s of the user, 3.2 s of an answer
ANSWER = "That is an answer with the length of a typical one."
REPETITIONS = 5


@dataclass(frozen=True)
class Move:
    """Replays of a conversation of one length."""

    conversation_s: float
    turns: int
    ticks: int  # ticks of the replay
    p50_ms: float  # time to the response of the next tick
    slowest_ms: float


def bench_move(settings: Settings) -> list[Move]:
    """Measure each length. Raises `TickError`."""
    return asyncio.run(_bench(settings))


async def _bench(settings: Settings) -> list[Move]:
    link = TritonLink(settings)
    try:
        moves = []
        for length_s in track(LENGTHS_S, description="replays", transient=True):
            turns = round(length_s * 1000 / settings.audio.tick_ms / (USER_TICKS + ANSWER_TICKS))
            replay = _replay_of(settings, turns)
            times_ms = [1000 * await _replay(link, replay, settings) for _ in range(REPETITIONS)]
            moves.append(Move(length_s, turns, len(replay.ticks), float(np.median(times_ms)), max(times_ms)))
        return moves
    finally:
        await link.close()


def _replay_of(settings: Settings, turns: int) -> Replay:
    """Return the replay of a conversation of `turns` turns, with noise as the user's audio."""
    log, tick_ms = ReplayLog(settings), settings.audio.tick_ms
    random = np.random.RandomState(0)
    entries: list[Entry] = []
    for turn in range(1, turns + 1):
        begin_ms, end_ms = log.clock_ms, log.clock_ms + USER_TICKS * tick_ms
        audio, answer = Entry(turn, "user", "", begin_ms, end_ms), Entry(turn, "assistant", ANSWER)
        speaking = State(tuple(entries), input=InputState.SPEECH, open_turn=turn, open_from_ms=begin_ms)
        states = {
            0: speaking,
            USER_TICKS: State((*entries, audio), answering=turn, input_from_ms=end_ms),
            USER_TICKS + 1: State((*entries, audio, answer), input_from_ms=end_ms, next_turn=turn + 1),
        }
        for tick in range(USER_TICKS + ANSWER_TICKS):
            loudness = LOUDNESS if tick < USER_TICKS else 0
            pcm = random.randint(-loudness, loudness + 1, settings.audio.input_samples).astype(np.int16)
            log.sent(TickIn(pcm.tobytes(), start=turn == 1 and tick == 0))
            log.answered([], states.get(tick))
        entries += [audio, answer]
    return log.replay()


async def _replay(link: TritonLink, replay: Replay, settings: Settings) -> float:
    """Return the seconds until the response to the tick after a replay."""
    in_flight = asyncio.Semaphore(REPLAY_IN_FLIGHT)
    silence = bytes(2 * settings.audio.input_samples)

    async def ticks() -> AsyncIterator[TickIn]:
        for tick in replay.ticks:
            await in_flight.acquire()
            yield tick
        yield TickIn(silence, end=True)

    begun_s = time.monotonic()
    async for response in link.converse(new_sequence_id(), ticks()):
        if isinstance(response, TickError):
            raise response
        in_flight.release()
    return time.monotonic() - begun_s


def show(moves: Sequence[Move]) -> Table:
    """Return a table with a row a length."""
    table = Table("conversation", "turns", "ticks sent", "replay, p50", "slowest", "share of its length")
    for move in moves:
        table.add_row(
            f"{move.conversation_s:g} s", str(move.turns), str(move.ticks), f"{move.p50_ms:.0f} ms",
            f"{move.slowest_ms:.0f} ms", f"{move.p50_ms / 1000 / move.conversation_s:.1%}",
        )  # fmt: skip
    return table
