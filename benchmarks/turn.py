"""From the end of a user's turn to the answer's first codec frames: the engine alone, as fast as it can.

Turns end by commit, as they do for a client with its own detector: with server VAD the tick in which silence has lasted
long enough does the same work. Users speak for random times and in random order, so a commit meets conversations that
listen and that are being answered.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence

import torch
from rich.progress import track

from benchmarks.engine import GREEDY, LOG_MELS, memory_in_use, served_predictor, some_ticks
from benchmarks.report import Row
from config import Settings
from contract.controls import Controls
from contract.events import AnswerDone
from engine.checkpoint import Checkpoint
from engine.engine import Engine
from engine.tick import TickInput, TickOutput
from engine.turn.conversation import TurnConversation

SPOKEN_S = (1.5, 7.0)  # a user's turn
ANSWER_FRAMES = 40  # of an answer at most, 3.1 s; and as many tokens, since random weights hardly ever end their text
LENGTHS_S = (5, 60)  # of two turns that are compared, each for every fifth turn that is measured
TURNS = 10  # of a conversation, the first and the last of which are compared, likewise


class Talks:
    """Conversations on an engine of their own, a tick of all at a time."""

    def __init__(self, checkpoint: Checkpoint, settings: Settings, slots: int):
        torch.set_num_threads(settings.engine.cpu_threads)
        if checkpoint.model.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        engine = {"slots": slots, "dialect": "turn", "tick_share": 1.0}
        self.settings = settings.with_values(engine=engine, turn={"detection": "manual"})
        self.engine: Engine[TurnConversation] = Engine(checkpoint, self.settings, served_predictor(checkpoint))
        self.engine.warm_up()
        self._heard = some_ticks(settings, slots)
        self._ticks = 0

    def open(self, key: int) -> None:
        """Begins a conversation, greedy."""
        options = {
            "detection": "manual",
            "answer_frames": ANSWER_FRAMES,
            "answer_tokens": ANSWER_FRAMES,
            **GREEDY,
            "seed": key,
        }
        self.engine.open(key, self.engine.parse_options(options))

    def tick(self, controls: dict[int, Controls]) -> tuple[float, dict[int, TickOutput]]:
        """Seconds that a tick of the conversations named takes, and what they said."""
        self._ticks += 1
        heard: dict[Hashable, TickInput] = {
            key: self._heard[key][self._ticks % LOG_MELS]._replace(controls=asked) for key, asked in controls.items()
        }
        begun = time.perf_counter()
        said = self.engine.tick(heard)
        seconds = time.perf_counter() - begun
        for answer in said.values():
            if isinstance(answer, Exception):
                raise answer
        return seconds, {key: spoken for key, spoken in said.items() if isinstance(spoken, TickOutput)}  # type: ignore[misc]


def bench_turn(checkpoint: Checkpoint, settings: Settings, conversations: Sequence[int], turns: int) -> Iterator[Row]:
    """Rows of ticks in which a turn ends: by number of conversations, for turns short and long, first and tenth."""
    for count in conversations:
        yield _among(checkpoint, settings, count, turns)
    talks, repeats = Talks(checkpoint, settings, 1), max(1, turns // 5)
    yield from _lengths(talks, repeats)
    yield from _first_and_tenth(talks, repeats)


def _among(checkpoint: Checkpoint, settings: Settings, count: int, turns: int) -> Row:
    """So many turns, of all conversations together."""
    talks, chance = Talks(checkpoint, settings, count), random.Random(0)
    tick_s = settings.audio.tick_ms / 1000

    def spoken_ticks() -> int:
        return round(chance.uniform(*SPOKEN_S) / tick_s)

    left = {key: spoken_ticks() for key in range(count)}  # ticks to the end of each user's turn; 0: it is answered
    for key in left:
        talks.open(key)
    latencies: list[float] = []
    stages: Counter[str] = Counter()
    ticks = 0
    while len(latencies) < turns:
        before = Counter(talks.engine.stage_seconds)
        seconds, said = talks.tick({key: Controls(commit=waiting == 1) for key, waiting in left.items()})
        ended = sum(waiting == 1 for waiting in left.values())
        if ended:
            latencies += [seconds] * ended
            stages.update(talks.engine.stage_seconds - before)
            ticks += 1
        for key, spoken in said.items():
            is_over = any(isinstance(event, AnswerDone) for event in spoken.events)
            left[key] = spoken_ticks() if is_over else max(0, left[key] - 1)
    return _row("end of turn", talks, count, latencies, {name: spent / ticks * 1000 for name, spent in stages.items()})


def _lengths(talks: Talks, repeats: int) -> list[Row]:
    """The end of a short turn and of a long one, alternately: a machine is not as fast at all times."""
    latencies: dict[int, list[float]] = {seconds: [] for seconds in LENGTHS_S}
    for _ in track(range(repeats), description="short and long turns", transient=True):
        for length, found in latencies.items():
            talks.open(0)
            for _ in range(round(length * 1000 / talks.settings.audio.tick_ms) - 1):
                talks.tick({0: Controls()})
            found.append(talks.tick({0: Controls(commit=True)})[0])
    return [_row(f"end of {length} s", talks, 1, found) for length, found in latencies.items()]


def _first_and_tenth(talks: Talks, repeats: int) -> list[Row]:
    """The first turn's end and the tenth's, of turns of one length."""
    latencies: list[list[float]] = [[] for _ in range(TURNS)]
    for _ in track(range(repeats), description="ten turns", transient=True):
        talks.open(0)
        for found in latencies:
            for _ in range(10):
                talks.tick({0: Controls()})
            found.append(talks.tick({0: Controls(commit=True)})[0])
            for _ in range(ANSWER_FRAMES):  # more than an answer has ticks
                _, said = talks.tick({0: Controls()})
                if any(isinstance(event, AnswerDone) for event in said[0].events):
                    break
    return [_row("first turn", talks, 1, latencies[0]), _row("tenth turn", talks, 1, latencies[-1])]


def _row(what: str, talks: Talks, count: int, latencies: Sequence[float], stages: Mapping[str, float] = {}) -> Row:
    memory = memory_in_use(talks.engine.device)
    return Row.of(what, count, talks.settings.audio.tick_ms, latencies, stages, memory_bytes=memory)
