"""From the end of a user's turn to the first sound of its answer, the whole way by WebSocket, and ticks meanwhile.

Users speak at the pace of microphones, commit, hear the answer to its end, and speak again. Two servers can be measured
side by side: they take turns, since a machine is not as fast at all times.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
import urllib.request
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from prometheus_client.parser import text_string_to_metric_families
from websockets.asyncio.client import ClientConnection, connect

from benchmarks.paced import LOUDNESS
from benchmarks.report import Row
from benchmarks.server import DIRECT, Counters
from benchmarks.turn import ANSWER_FRAMES, SPOKEN_S
from config import Settings

FRAME_S = 0.02
FRAME_SAMPLES = 320
ROUNDS = 4  # of two servers that take turns
TICKS = "sca_bridge_tick_seconds"

Buckets = Mapping[float, float]  # how many ticks took at most so many seconds


def bench_turn_bridge(
    settings: Settings,
    conversations: Sequence[int],
    seconds: float,
    said: np.ndarray | None = None,
    beside: int | None = None,
) -> list[Row]:
    """Rows for each number of conversations. `said`: what users say, int16 at 16 kHz; None: noise of random lengths.

    `beside`: the port of another bridge, measured in turn. Raises `RuntimeError` with what a bridge said.
    """
    servers = {"": settings}
    if beside:
        servers[f", port {beside}"] = settings.with_values(bridge={"port": beside})
    rows = []
    for count in conversations:
        counters = Counters.read(settings)
        turns: dict[str, list[float]] = defaultdict(list)
        ticks: dict[str, Buckets] = {}
        for _ in range(ROUNDS if beside else 1):
            for name, server in servers.items():
                before = _ticks_so_far(server)
                turns[name] += asyncio.run(_talk(server, count, seconds / (ROUNDS if beside else 1), said))
                grown = {limit: n - before.get(limit, 0.0) for limit, n in _ticks_so_far(server).items()}
                ticks[name] = {limit: n + ticks.get(name, {}).get(limit, 0.0) for limit, n in grown.items()}
        for name in servers:
            if not turns[name]:
                why = (
                    ""
                    if said is not None
                    else ": the turns are noise, which a trained checkpoint need not answer: --wav"
                )
                raise RuntimeError(f"no turn was answered in {seconds:g} s{why}")
            rows.append(Row.of(f"end of turn{name}", count, settings.audio.tick_ms, turns[name]))
            row = _row_of_ticks(f"a tick meanwhile{name}", count, settings.audio.tick_ms, ticks[name])
            if not beside:  # of the one Triton whose counters are at hand
                row = replace(row, stages_ms=Counters.read(settings).stages_since(counters, row.mean_ms))
            rows.append(row)
    return rows


def _ticks_so_far(settings: Settings) -> Buckets:
    """The bridge's own count of its ticks. Raises `OSError` when it does not answer."""
    url = f"http://{settings.bridge.host}:{settings.bridge.port}/metrics"
    with DIRECT.open(urllib.request.Request(url), timeout=5) as response:
        families = text_string_to_metric_families(response.read().decode())
    return {
        float(sample.labels["le"]): sample.value
        for family in families
        for sample in family.samples
        if sample.name == f"{TICKS}_bucket"
    }


def _row_of_ticks(what: str, count: int, tick_ms: int, buckets: Buckets) -> Row:
    """Percentiles of a histogram, by straight lines within its buckets, as Prometheus has them."""
    limits, numbers = (np.array(each) for each in zip(*sorted(buckets.items()), strict=True))
    limits[-1] = limits[-2]  # beyond the last there is no line
    total = int(numbers[-1])
    p50, p95, p99 = (
        1000 * float(np.interp(share * total, [0.0, *numbers], [0.0, *limits])) for share in (0.5, 0.95, 0.99)
    )
    on_time = float(np.interp(tick_ms / 1000, limits, numbers))
    middles = (np.array([0.0, *limits[:-1]]) + limits) / 2
    mean = 1000 * float((np.diff([0.0, *numbers]) * middles).sum() / max(1, total))
    return Row(what, count, total, mean, p50, p95, p99, round(total - on_time), tick_ms=tick_ms, paced=True)


async def _talk(settings: Settings, count: int, seconds: float, said: np.ndarray | None) -> list[float]:
    """Seconds from commit to first sound of every turn of so many conversations at once."""
    found = await asyncio.gather(*(_user(settings, number, seconds, said) for number in range(count)))
    return [latency for each in found for latency in each]


async def _user(settings: Settings, number: int, seconds: float, said: np.ndarray | None) -> list[float]:
    chance, noise = random.Random(number), np.random.RandomState(number)
    options = f"detection=manual&answer_frames={ANSWER_FRAMES}&answer_tokens={ANSWER_FRAMES}&seed={number}"
    if said is None:
        options += "&text_temperature=1"  # no two answers alike
    url = f"{settings.bridge.url}/ws/pcm16?{options}"
    latencies: list[float] = []
    async with connect(url, max_size=None, proxy=None) as socket:
        ear = Ear()
        hearing = asyncio.create_task(ear.listen(socket))
        await asyncio.sleep(chance.random() * settings.audio.tick_ms / 1000)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            await socket.send(json.dumps({"type": "listen"}))
            samples = said
            if samples is None:
                length = round(chance.uniform(*SPOKEN_S) / FRAME_S) * FRAME_SAMPLES
                samples = noise.randint(-LOUDNESS, LOUDNESS, length).astype(np.int16)
            await _send(socket, samples)
            committed = ear.expect()
            await socket.send(json.dumps({"type": "commit"}))
            while not ear.is_done.is_set() and not hearing.done():
                await _send(socket, np.zeros(FRAME_SAMPLES, np.int16))
            if hearing.done():
                await hearing  # why
                break
            if ear.first_sound_s:  # none when the model had nothing to say
                latencies.append(ear.first_sound_s - committed)
        await socket.send(json.dumps({"type": "end"}))
        await hearing
    return latencies


async def _send(socket: ClientConnection, samples: np.ndarray) -> None:
    """In frames, each when it has been spoken."""
    due = time.monotonic()
    for start in range(0, len(samples), FRAME_SAMPLES):
        await socket.send(samples[start : start + FRAME_SAMPLES].tobytes())
        due += FRAME_S
        await asyncio.sleep(max(0.0, due - time.monotonic()))


class Ear:
    """Notes when an answer's first sound came."""

    def __init__(self) -> None:
        self.is_done = asyncio.Event()
        self.first_sound_s = 0.0
        self._expects = False

    def expect(self) -> float:
        """The next sound is an answer's; returns the time."""
        self.is_done.clear()
        self.first_sound_s, self._expects = 0.0, True
        return time.monotonic()

    async def listen(self, socket: ClientConnection) -> None:
        """Until the bridge closes. Raises `RuntimeError` with an error's words."""
        async for message in socket:
            if isinstance(message, bytes):
                if self._expects and any(message):
                    self.first_sound_s, self._expects = time.monotonic(), False
                continue
            event = json.loads(message)
            if event["type"] == "error":
                self.is_done.set()
                raise RuntimeError(event["message"])
            if event["type"] == "answer_done":
                self.is_done.set()
