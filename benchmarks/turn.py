"""Time from the end of a user's turn to the answer's first codec frames: the engine in this process, without pauses.

Turns end by commit, as with a client's own detector: with server VAD the tick in which silence has lasted long enough
does the same work. Users speak for random times and in random order, so a commit meets conversations that listen and
conversations that are being answered.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence

import torch
from rich.progress import track

from benchmarks.engine import GREEDY, LOG_MELS, memory_in_use, noise_ticks, served_predictor
from benchmarks.row import Row
from config import Settings
from contract.controls import Controls
from contract.events import AnswerDone
from engine.checkpoint import Checkpoint
from engine.engine import Engine
from engine.tick import TickInput, TickOutput
from engine.turn.conversation import TurnConversation

SPOKEN_S = (1.5, 7.0)  # duration of a user's turn
ANSWER_FRAMES = 40  # limit of an answer, 3.2 s; also its limit of tokens, because random weights rarely end a text
LENGTHS_S = (5, 60)  # durations of two turns that are compared
TURNS = 10  # turns of a conversation whose first and last are compared
TURNS_PER_COMPARISON = 5  # one comparison for every TURNS_PER_COMPARISON measured turns


class TurnConversations:
    """Conversations on their own engine, which advance together."""

    def __init__(self, checkpoint: Checkpoint, settings: Settings, slots: int):
        torch.set_num_threads(settings.engine.cpu_threads)
        if checkpoint.model.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        engine = {"slots": slots, "dialect": "turn", "tick_share": 1.0}
        self.settings = settings.with_values(engine=engine, turn={"detection": "manual"})
        self.engine: Engine[TurnConversation] = Engine(checkpoint, self.settings, served_predictor(checkpoint))
        self.engine.warm_up()
        self._inputs = noise_ticks(settings, slots)
        self._ticks = 0

    def open(self, key: int) -> None:
        """Open a conversation with greedy decoding."""
        options = {
            "detection": "manual",
            "answer_frames": ANSWER_FRAMES,
            "answer_tokens": ANSWER_FRAMES,
            **GREEDY,
            "seed": key,
        }
        self.engine.open(key, self.engine.parse_options(options))

    def tick(self, controls: dict[int, Controls]) -> tuple[float, dict[int, TickOutput]]:
        """Run a tick of the conversations in `controls`; return its seconds and their outputs."""
        self._ticks += 1
        inputs: dict[Hashable, TickInput] = {
            key: self._inputs[key][self._ticks % LOG_MELS]._replace(controls=each) for key, each in controls.items()
        }
        begun = time.perf_counter()
        results = self.engine.tick(inputs)
        seconds = time.perf_counter() - begun
        for result in results.values():
            if isinstance(result, Exception):
                raise result
        return seconds, {key: output for key, output in results.items() if isinstance(output, TickOutput)}  # type: ignore[misc]


def bench_turn(checkpoint: Checkpoint, settings: Settings, conversations: Sequence[int], turns: int) -> Iterator[Row]:
    """Measure ticks in which a turn ends, for each number of conversations, short and long, first and tenth turns."""
    for count in conversations:
        yield _concurrent(checkpoint, settings, count, turns)
    talks, repeats = TurnConversations(checkpoint, settings, 1), max(1, turns // TURNS_PER_COMPARISON)
    yield from _lengths(talks, repeats)
    yield from _first_and_tenth(talks, repeats)


def _concurrent(checkpoint: Checkpoint, settings: Settings, count: int, turns: int) -> Row:
    """Measure `turns` turns of `count` conversations together."""
    talks, draw = TurnConversations(checkpoint, settings, count), random.Random(0)
    tick_s = settings.audio.tick_ms / 1000

    def spoken_ticks() -> int:
        return round(draw.uniform(*SPOKEN_S) / tick_s)

    remaining = {key: spoken_ticks() for key in range(count)}  # ticks to the end of each user's turn; 0: being answered
    for key in remaining:
        talks.open(key)
    latencies: list[float] = []
    stages: Counter[str] = Counter()
    ticks = 0
    while len(latencies) < turns:
        before = Counter(talks.engine.stage_seconds)
        seconds, outputs = talks.tick({key: Controls(commit=ticks_left == 1) for key, ticks_left in remaining.items()})
        ended = sum(ticks_left == 1 for ticks_left in remaining.values())
        if ended:
            latencies += [seconds] * ended
            stages.update(talks.engine.stage_seconds - before)
            ticks += 1
        for key, output in outputs.items():
            is_done = any(isinstance(event, AnswerDone) for event in output.events)
            remaining[key] = spoken_ticks() if is_done else max(0, remaining[key] - 1)
    return _row("end of turn", talks, count, latencies, {name: spent / ticks * 1000 for name, spent in stages.items()})


def _lengths(talks: TurnConversations, repeats: int) -> list[Row]:
    """Measure the end of a short and of a long turn in alternation: a machine's speed varies over time."""
    latencies: dict[int, list[float]] = {seconds: [] for seconds in LENGTHS_S}
    for _ in track(range(repeats), description="short and long turns", transient=True):
        for length, measured in latencies.items():
            talks.open(0)
            for _ in range(round(length * 1000 / talks.settings.audio.tick_ms) - 1):
                talks.tick({0: Controls()})
            measured.append(talks.tick({0: Controls(commit=True)})[0])
    return [_row(f"end of {length} s", talks, 1, measured) for length, measured in latencies.items()]


def _first_and_tenth(talks: TurnConversations, repeats: int) -> list[Row]:
    """Measure the end of the first and of the tenth turn of a conversation, with turns of one length."""
    latencies: list[list[float]] = [[] for _ in range(TURNS)]
    for _ in track(range(repeats), description="ten turns", transient=True):
        talks.open(0)
        for measured in latencies:
            for _ in range(10):
                talks.tick({0: Controls()})
            measured.append(talks.tick({0: Controls(commit=True)})[0])
            for _ in range(ANSWER_FRAMES):  # more ticks than an answer has
                _, outputs = talks.tick({0: Controls()})
                if any(isinstance(event, AnswerDone) for event in outputs[0].events):
                    break
    return [_row("first turn", talks, 1, latencies[0]), _row("tenth turn", talks, 1, latencies[-1])]


def _row(
    what: str, talks: TurnConversations, count: int, latencies: Sequence[float], stages: Mapping[str, float] = {}
) -> Row:
    memory = memory_in_use(talks.engine.device)
    return Row.of(what, count, talks.settings.audio.tick_ms, latencies, stages, memory_bytes=memory)
