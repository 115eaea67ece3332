"""The engine in this process: ticks of so many conversations at once, as fast as it can."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from rich.progress import track

from benchmarks.report import Row
from config import Settings
from engine.checkpoint import Checkpoint
from engine.engine import Engine
from tests.oracle import ScaOracle

WARM_UP_TICKS = 4


def bench_engine(checkpoint: Checkpoint, settings: Settings, sessions: Sequence[int], ticks: int) -> list[Row]:
    """A row for each number of sessions; more than `engine.slots` are given slots of their own."""
    torch.set_num_threads(settings.engine.cpu_threads)
    engine = Engine(checkpoint, settings.with_values(engine={"slots": max(sessions)}))
    heard = some_log_mels(settings)
    rows = []
    for count in sessions:
        for key in range(count):
            engine.open(key, engine.parse_options({"seed": key}))
        latencies: list[float] = []
        for tick in track(range(WARM_UP_TICKS + ticks), description=f"{count} sessions", transient=True):
            if tick == WARM_UP_TICKS:
                latencies.clear()
                engine.dialect.stopwatch.read()
            begun = time.perf_counter()
            engine.tick({key: heard[(tick + key) % len(heard)] for key in range(count)})
            latencies.append(time.perf_counter() - begun)
        stages = {stage: seconds / ticks * 1000 for stage, seconds in engine.dialect.stopwatch.read().items()}
        rows.append(Row.of("engine", count, settings.audio.tick_ms, latencies, stages))
        for key in range(count):
            engine.close(key)
    return rows


def bench_transformers(checkpoint: Checkpoint, settings: Settings, ticks: int) -> Row:
    """The baseline: one conversation's ticks through transformers' own modules, caches and `generate()`."""
    torch.set_num_threads(settings.engine.cpu_threads)
    voice = sorted(checkpoint.model.config.talker_config.speaker_id)[0]
    oracle = ScaOracle(checkpoint.model, checkpoint.tokenizer, voice)
    heard = some_log_mels(settings)
    latencies = []
    for tick in track(range(WARM_UP_TICKS + ticks), description="transformers", transient=True):
        begun = time.perf_counter()
        oracle.tick(heard[tick % len(heard)])
        latencies.append(time.perf_counter() - begun)
    return Row.of("transformers", 1, settings.audio.tick_ms, latencies[WARM_UP_TICKS:])


def some_log_mels(settings: Settings) -> list[torch.Tensor]:
    """Ticks of noise in the range of speech; what is heard does not change how long it takes."""
    random = torch.Generator().manual_seed(0)
    return [torch.rand(128, settings.audio.mel_frames, generator=random) * 2 - 1 for _ in range(16)]
