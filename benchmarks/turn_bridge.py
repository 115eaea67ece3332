"""Time from the end of a user's turn to the first audio of its answer over WebSocket, and tick times meanwhile.

Users speak at the pace of microphones, commit, receive the answer to its end, and speak again. Two servers can be
compared: they are measured in alternation, because a machine's speed varies over time.
"""

from __future__ import annotations

import asyncio
import random
import time
import urllib.request
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.paced import LOUDNESS
from benchmarks.paced_client import FRAME, FRAME_S, PacedClient, paced_client
from benchmarks.row import Row
from benchmarks.server import DIRECT, Counters
from benchmarks.turn import ANSWER_FRAMES, SPOKEN_S
from config import Settings

ROUNDS = 4  # alternations of two servers
TICKS = "sca_bridge_tick_seconds"

Buckets = Mapping[float, float]  # number of ticks by their upper limit in seconds, cumulative


def bench_turn_bridge(
    settings: Settings,
    conversations: Sequence[int],
    seconds: float,
    speech: np.ndarray | None = None,
    other_port: int | None = None,
) -> list[Row]:
    """Measure each number of conversations. `speech`: every user's turn, int16 at 16 kHz; None: noise, random lengths.

    `other_port`: port of a second bridge to compare with. Raises `RuntimeError`, for errors of a bridge too.
    """
    servers = {"": settings}
    if other_port:
        servers[f", port {other_port}"] = settings.with_values(bridge={"port": other_port})
    rounds = ROUNDS if other_port else 1
    rows = []
    for count in conversations:
        counters = Counters.read(settings)
        turns: dict[str, list[float]] = defaultdict(list)
        ticks: dict[str, Buckets] = {}
        for _ in range(rounds):
            for name, server in servers.items():
                before = _read_ticks(server)
                turns[name] += asyncio.run(_converse_all(server, count, seconds / rounds, speech))
                grown = {limit: n - before.get(limit, 0.0) for limit, n in _read_ticks(server).items()}
                ticks[name] = {limit: n + ticks.get(name, {}).get(limit, 0.0) for limit, n in grown.items()}
        for name in servers:
            if not turns[name]:
                advice = "" if speech is not None else ": a trained checkpoint may not answer noise; use --wav"
                raise RuntimeError(f"no turn was answered within {seconds:g} s{advice}")
            rows.append(Row.of(f"end of turn{name}", count, settings.audio.tick_ms, turns[name]))
            row = _histogram_row(f"tick{name}", count, settings.audio.tick_ms, ticks[name])
            if not other_port:  # Triton's counters are read at one server only
                row = replace(row, stages_ms=Counters.read(settings).stages_since(counters, row.mean_ms))
            rows.append(row)
    return rows


def _read_ticks(settings: Settings) -> Buckets:
    """Request the bridge's histogram of tick times. Raises `OSError` if the bridge does not respond."""
    url = f"http://{settings.bridge.host}:{settings.bridge.port}/metrics"
    with DIRECT.open(urllib.request.Request(url), timeout=5) as response:
        families = text_string_to_metric_families(response.read().decode())
    return {
        float(sample.labels["le"]): sample.value
        for family in families
        for sample in family.samples
        if sample.name == f"{TICKS}_bucket"
    }


def _histogram_row(what: str, count: int, tick_ms: int, buckets: Buckets) -> Row:
    """Return percentiles of a histogram, linear within its buckets, as in Prometheus' `histogram_quantile`."""
    limits, numbers = (np.array(each) for each in zip(*sorted(buckets.items()), strict=True))
    limits[-1] = limits[-2]  # the last bucket has no upper limit
    total = int(numbers[-1])
    p50, p95, p99 = (
        1000 * float(np.interp(share * total, [0.0, *numbers], [0.0, *limits])) for share in (0.5, 0.95, 0.99)
    )
    on_time = float(np.interp(tick_ms / 1000, limits, numbers))
    middles = (np.array([0.0, *limits[:-1]]) + limits) / 2
    mean = 1000 * float((np.diff([0.0, *numbers]) * middles).sum() / max(1, total))
    return Row(what, count, total, mean, p50, p95, p99, round(total - on_time), tick_ms=tick_ms, paced=True)


async def _converse_all(settings: Settings, count: int, seconds: float, speech: np.ndarray | None) -> list[float]:
    """Return the seconds from commit to first audio of every turn of `count` conversations at once."""
    latencies = await asyncio.gather(*(_converse(settings, number, seconds, speech) for number in range(count)))
    return [latency for each in latencies for latency in each]


async def _converse(settings: Settings, number: int, seconds: float, speech: np.ndarray | None) -> list[float]:
    draw, noise = random.Random(number), np.random.RandomState(number)
    options = f"detection=manual&answer_frames={ANSWER_FRAMES}&answer_tokens={ANSWER_FRAMES}&seed={number}"
    if speech is None:
        options += "&text_temperature=1"  # answers differ between conversations
    latencies: list[float] = []
    async with paced_client(f"{settings.bridge.url}/ws/pcm16?{options}") as client:
        timer = AnswerTimer()
        receiving = asyncio.create_task(timer.receive(client))
        await asyncio.sleep(draw.random() * settings.audio.tick_ms / 1000)
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            await client.send_control("listen")
            samples = speech
            if samples is None:
                length = round(draw.uniform(*SPOKEN_S) / FRAME_S) * FRAME
                samples = noise.randint(-LOUDNESS, LOUDNESS, length).astype(np.int16)
            await client.send_audio(samples)
            committed_s = timer.start()
            await client.send_control("commit")
            while not timer.is_done.is_set() and not receiving.done():
                await client.send_audio(np.zeros(FRAME, np.int16))
            if receiving.done():
                await receiving  # raises the error that ended the conversation
                break
            if timer.first_audio_s:  # 0 if the model answered nothing
                latencies.append(timer.first_audio_s - committed_s)
        await client.send_control("end")
        await receiving
    return latencies


class AnswerTimer:
    """Time of the first audio of an answer, and the end of the answer."""

    def __init__(self) -> None:
        self.is_done = asyncio.Event()
        self.first_audio_s = 0.0
        self._waits = False

    def start(self) -> float:
        """Wait for the next answer's audio from now on; return the time."""
        self.is_done.clear()
        self.first_audio_s, self._waits = 0.0, True
        return time.monotonic()

    async def receive(self, client: PacedClient) -> None:
        """Receive until the bridge closes. Raises `DialogueError` for an `error` event."""
        try:
            async for message in client:
                if isinstance(message, np.ndarray):
                    if self._waits and message.any():
                        self.first_audio_s, self._waits = time.monotonic(), False
                elif message["type"] == "answer_done":
                    self.is_done.set()
        finally:
            self.is_done.set()
