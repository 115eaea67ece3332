"""The engine in this process: ticks of so many conversations at once, as fast as it can.

In the dialect `sca`, greedy: every conversation does the same work in every tick, the most that a tick can ask for.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.progress import track

from benchmarks.floor import bandwidth, tick_bytes
from benchmarks.report import BASELINE, Row
from config import Settings
from engine.checkpoint import Checkpoint
from engine.conversation import ScaConversation
from engine.dialect_sca import ScaDialect
from engine.engine import Engine
from tests.oracle import ScaOracle

WARM_UP_TICKS = 4
GREEDY = {"temperature": 0.0, "repetition_penalty": 1.0}
AGES = (500, 1000, 2000, 5000)  # ticks
AGE_WINDOW = 100  # ticks from each of them on: the context slides at least once
YOUNG = 50
PROFILED_TICKS = 3
LOG_MELS = 16  # ticks of sound, over and over


class Conversations:
    """So many at once on an engine of their own."""

    def __init__(self, checkpoint: Checkpoint, settings: Settings, slots: int):
        torch.set_num_threads(settings.engine.cpu_threads)
        self.engine = Engine(
            checkpoint, settings.with_values(engine={"slots": slots, "dialect": "sca"}, sampling=GREEDY)
        )
        self.engine.warm_up()
        self._tick_ms = settings.audio.tick_ms
        self._heard = some_log_mels(settings, slots)
        self._count = 0

    def open(self, count: int, age_s: float = 0) -> None:
        """Begins `count` of them that are taken for `age_s` old: their caches count as full of zeros up to there."""
        for key in range(self._count):
            self.engine.close(key)
        self._count = count
        for key in range(count):
            self.engine.open(key, self.engine.parse_options({"seed": key}))
            conversation, dialect = self.engine._conversations[key], self.engine.dialect
            assert isinstance(conversation, ScaConversation)
            assert isinstance(dialect, ScaDialect)
            conversation.ticks = min(round(age_s * 1000 / self._tick_ms), dialect.context_ticks - WARM_UP_TICKS)

    def tick(self, number: int) -> float:
        """Seconds that one tick of all of them takes."""
        begun = time.perf_counter()
        self.engine.tick({key: self._heard[key, number % LOG_MELS] for key in range(self._count)})
        return time.perf_counter() - begun


def bench_engine(
    checkpoint: Checkpoint,
    settings: Settings,
    sessions: Sequence[int],
    ticks: int,
    age_s: float = 0,
    paced: bool = False,
) -> Iterator[Row]:
    """A row for each number of sessions; more than `engine.slots` are given slots of their own.

    Conversations are `age_s` seconds old when measuring begins: so much of their caches is read. `paced` waits until
    each tick is due, as a server does: a machine that has rested is slower at first.
    """
    device = checkpoint.model.device
    bytes_per_s = bandwidth(device)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    conversations = Conversations(checkpoint, settings, max(sessions))
    for count in sessions:
        conversations.open(count, age_s)
        for tick in range(WARM_UP_TICKS):
            conversations.tick(tick)
        before = Counter(conversations.engine.stage_seconds)
        latencies = []
        for tick in track(range(ticks), description=f"{count} sessions", transient=True):
            latencies.append(conversations.tick(tick))
            if paced:
                time.sleep(max(0.0, settings.audio.tick_ms / 1000 - latencies[-1]))
        spent = conversations.engine.stage_seconds - before  # a slide may be among them, or not
        row = Row.of(
            "engine, paced" if paced else "engine",
            count,
            settings.audio.tick_ms,
            latencies,
            {name: seconds / ticks * 1000 for name, seconds in spent.items()},
            memory_bytes=memory_in_use(device),
        )
        if device.type == "cuda":  # a tiny model on a CPU lies in its caches
            floor_ms = tick_bytes(checkpoint.model, settings, count, age_s) / bytes_per_s * 1000
            row = replace(row, floor_ms=floor_ms)
        yield row


def bench_age(checkpoint: Checkpoint, settings: Settings) -> list[Row]:
    """One conversation as it grows old. At some ages its ticks alternate with those of one at its 50th: a machine is
    not as fast at all times.
    """
    old, young = (Conversations(checkpoint, settings, 1) for _ in range(2))
    old.open(1)
    rows = []
    done = 0
    for age in AGES:
        for tick in track(range(done, age), description=f"growing {age} ticks old", transient=True):
            old.tick(tick)
        young.open(1)
        for tick in range(YOUNG - AGE_WINDOW // 2):
            young.tick(tick)
        pairs = [(old.tick(tick), young.tick(tick)) for tick in range(age, age + AGE_WINDOW)]
        done = age + AGE_WINDOW
        for what, latencies in zip((f"tick {age}", f"tick {YOUNG} beside it"), zip(*pairs, strict=True), strict=True):
            rows.append(Row.of(what, 1, settings.audio.tick_ms, latencies))
    return rows


def bench_transformers(checkpoint: Checkpoint, settings: Settings, ticks: int) -> Row:
    """The baseline: one conversation's ticks through transformers' own modules, caches and `generate()`."""
    torch.set_num_threads(settings.engine.cpu_threads)
    voice = sorted(checkpoint.model.config.talker_config.speaker_id)[0]
    oracle = ScaOracle(checkpoint.model, checkpoint.tokenizer, voice)
    heard = some_log_mels(settings, 1)[0]
    latencies = []
    for tick in track(range(WARM_UP_TICKS + ticks), description=BASELINE, transient=True):
        begun = time.perf_counter()
        oracle.tick(heard[tick % LOG_MELS])
        latencies.append(time.perf_counter() - begun)
    return Row.of(BASELINE, 1, settings.audio.tick_ms, latencies[WARM_UP_TICKS:])


def profile(checkpoint: Checkpoint, settings: Settings, count: int, age_s: float) -> str:
    """The slowest parts of a tick of so many conversations, as torch's profiler tells them."""
    conversations = Conversations(checkpoint, settings, count)
    conversations.open(count, age_s)
    for tick in range(WARM_UP_TICKS):
        conversations.tick(tick)
    cuda = checkpoint.model.device.type == "cuda"
    activities = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * cuda
    with torch.profiler.profile(activities=activities) as profiler:
        for tick in range(PROFILED_TICKS):
            conversations.tick(tick)
    by = "self_device_time_total" if cuda else "self_cpu_time_total"
    table: str = profiler.key_averages().table(sort_by=by, row_limit=25, max_name_column_width=60)
    return table


def memory_in_use(device: torch.device) -> int:
    """Bytes: the greatest of the device's so far, or this process's now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    found = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    return int(found[1]) * 1024 if found else 0


def some_log_mels(settings: Settings, conversations: int) -> torch.Tensor:
    """Noise in the range of speech, another for each conversation, whose tokens are to want other experts:
    [conversations, ticks, 128, T].
    """
    random = torch.Generator().manual_seed(0)
    return torch.rand(conversations, LOG_MELS, 128, settings.audio.mel_frames, generator=random) * 2 - 1
