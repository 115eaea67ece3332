"""Ticks of the engine in this process with several conversations at once, without pauses between them.

The dialect is `sca`: every conversation does the same work in every tick, the maximum that a tick can require.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.progress import track

from benchmarks.floor import bandwidth, tick_bytes
from benchmarks.report import BASELINE
from benchmarks.row import Row
from config import Settings
from engine.checkpoint import Checkpoint
from engine.code_predictor import CodePredictor, OnnxCodePredictor
from engine.engine import Engine
from engine.log_mel import normalise
from engine.sca.conversation import ScaConversation
from engine.tick import TickInput
from export.code_predictor import export_code_predictor
from tests.oracle import ScaOracle

WARM_UP_TICKS = 4
GREEDY = {"text_temperature": 0.0, "temperature": 0.0, "repetition_penalty": 1.0}
AGES = (500, 1000, 2000, 5000)  # ticks
AGE_WINDOW = 100  # ticks measured at each age: the context slides at least once
YOUNG = 50  # age in ticks that the others are compared with
PROFILED_TICKS = 3
LOG_MELS = 16  # different ticks of input, repeated
PEAK = 1.0  # log10 of the energy of the loudest cells


class Conversations:
    """Conversations on their own engine."""

    def __init__(self, checkpoint: Checkpoint, settings: Settings, slots: int, sampled: bool = False):
        torch.set_num_threads(settings.engine.cpu_threads)
        chosen = settings.with_values(engine={"slots": slots, "dialect": "sca", "tick_share": 1.0})
        chosen = chosen if sampled else chosen.with_values(sampling=GREEDY)
        self.engine: Engine[ScaConversation] = Engine(checkpoint, chosen, served_predictor(checkpoint))
        self.engine.warm_up()
        self._tick_ms = settings.audio.tick_ms
        self._inputs = noise_ticks(settings, slots)
        self._count = 0

    def open(self, count: int, age_s: float = 0) -> None:
        """Open `count` conversations that count as `age_s` old: their caches are taken as filled with zeros."""
        for key in range(self._count):
            self.engine.close(key)
        self._count = count
        for key in range(count):
            self.engine.open(key, self.engine.parse_options({"seed": key}))
            max_age = self.engine.settings.context_ticks - WARM_UP_TICKS
            self.engine.conversation(key).ticks = min(round(age_s * 1000 / self._tick_ms), max_age)

    def tick(self, number: int) -> float:
        """Run one tick of all conversations; return its seconds."""
        begun = time.perf_counter()
        self.engine.tick({key: self._inputs[key][number % LOG_MELS] for key in range(self._count)})
        return time.perf_counter() - begun


def bench_engine(
    checkpoint: Checkpoint,
    settings: Settings,
    conversations: Sequence[int],
    ticks: int,
    age_s: float = 0,
    paced: bool = False,
    sampled: bool = False,
) -> Iterator[Row]:
    """Measure each number of conversations; the engine has as many slots as the largest number.

    Conversations are `age_s` seconds old when measuring begins, which decides how much of their caches is read.
    `paced` waits until each tick is due, as a server does: an idle machine is slower at first. `sampled`: sampling as
    in the settings instead of greedy decoding.
    """
    device = checkpoint.model.device
    bytes_per_s = bandwidth(device)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    running = Conversations(checkpoint, settings, max(conversations), sampled)
    for count in conversations:
        running.open(count, age_s)
        for tick in range(WARM_UP_TICKS):
            running.tick(tick)
        before = Counter(running.engine.stage_seconds)
        latencies = []
        for tick in track(range(ticks), description=f"{count} conversations", transient=True):
            latencies.append(running.tick(tick))
            if paced:
                time.sleep(max(0.0, settings.audio.tick_ms / 1000 - latencies[-1]))
        spent = running.engine.stage_seconds - before  # may include the eviction of a full context
        row = Row.of(
            "engine" + (", sampled" if sampled else "") + (", paced" if paced else ""),
            count,
            settings.audio.tick_ms,
            latencies,
            {name: seconds / ticks * 1000 for name, seconds in spent.items()},
            memory_bytes=memory_in_use(device),
        )
        if device.type == "cuda":  # on a CPU a random model fits its caches, which are faster
            floor_ms = tick_bytes(checkpoint.model, settings, count, age_s) / bytes_per_s * 1000
            row = replace(row, floor_ms=floor_ms)
        yield row


def bench_age(checkpoint: Checkpoint, settings: Settings) -> list[Row]:
    """Measure one conversation at several ages, in alternation with a young one: a machine's speed varies over time."""
    old, young = (Conversations(checkpoint, settings, 1) for _ in range(2))
    old.open(1)
    rows = []
    done = 0
    for age in AGES:
        for tick in track(range(done, age), description=f"up to tick {age}", transient=True):
            old.tick(tick)
        young.open(1)
        for tick in range(YOUNG - AGE_WINDOW // 2):
            young.tick(tick)
        pairs = [(old.tick(tick), young.tick(tick)) for tick in range(age, age + AGE_WINDOW)]
        done = age + AGE_WINDOW
        for what, latencies in zip((f"tick {age}", f"tick {YOUNG} of another"), zip(*pairs, strict=True), strict=True):
            rows.append(Row.of(what, 1, settings.audio.tick_ms, latencies))
    return rows


def bench_transformers(checkpoint: Checkpoint, settings: Settings, ticks: int) -> Row:
    """Measure the baseline: one conversation through transformers' own modules, caches and `generate()`."""
    torch.set_num_threads(settings.engine.cpu_threads)
    voice = sorted(checkpoint.model.config.talker_config.speaker_id)[0]
    oracle = ScaOracle(checkpoint.model, checkpoint.tokenizer, voice)
    log_mels = [normalise(tick.log_mel, PEAK) for tick in noise_ticks(settings, 1)[0]]
    latencies = []
    for tick in track(range(WARM_UP_TICKS + ticks), description=BASELINE, transient=True):
        begun = time.perf_counter()
        oracle.tick(log_mels[tick % LOG_MELS])
        latencies.append(time.perf_counter() - begun)
    return Row.of(BASELINE, 1, settings.audio.tick_ms, latencies[WARM_UP_TICKS:])


def profile(checkpoint: Checkpoint, settings: Settings, count: int, age_s: float) -> str:
    """Return the slowest operations of a tick with `count` conversations, as a table of torch's profiler."""
    running = Conversations(checkpoint, settings, count)
    running.open(count, age_s)
    for tick in range(WARM_UP_TICKS):
        running.tick(tick)
    cuda = checkpoint.model.device.type == "cuda"
    activities = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * cuda
    with torch.profiler.profile(activities=activities) as profiler:
        for tick in range(PROFILED_TICKS):
            running.tick(tick)
    by = "self_device_time_total" if cuda else "self_cpu_time_total"
    table: str = profiler.key_averages().table(sort_by=by, row_limit=25, max_name_column_width=60)
    return table


def memory_in_use(device: torch.device) -> int:
    """Return bytes: the peak of a CUDA device, or the resident memory of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    found = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    return int(found[1]) * 1024 if found else 0


def noise_ticks(settings: Settings, conversations: int) -> list[list[TickInput]]:
    """Return noise in the range of speech, different for each conversation so that tokens reach different experts."""
    random = torch.Generator().manual_seed(0)
    shape = (conversations, LOG_MELS, 128, settings.audio.mel_frames)
    noise = torch.rand(shape, generator=random) * 8 + PEAK - 8
    pcm = np.random.RandomState(0).randint(-3000, 3000, settings.audio.input_samples).astype(np.int16)
    return [[TickInput(log_mel, pcm) for log_mel in log_mels] for log_mels in noise]


def served_predictor(checkpoint: Checkpoint) -> CodePredictor | None:
    """Return the ONNX graphs that are served on a CPU in float32; None: torch's code predictor."""
    if checkpoint.model.device.type != "cpu" or checkpoint.model.dtype != torch.float32:
        return None
    with tempfile.TemporaryDirectory() as folder:
        export_code_predictor(checkpoint.model.talker, Path(folder))
        return OnnxCodePredictor(Path(folder))
