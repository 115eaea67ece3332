"""The bridge alone, on one core, before a stand-in for Triton that answers at once.

Clients speak at the pace of microphones, in frames of 20 ms; others have a WebSocket and say nothing. A tick's time is
counted from when its last sample was spoken to its sound at the client; in a call, whose voice has its own pace, to its
text. The same from Triton itself, beside each, is what the bridge's is to be compared with.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.progress import track
from rich.table import Table
from websockets.asyncio.client import connect

from benchmarks.report import Row
from benchmarks.server import DIRECT
from benchmarks.speakers import CALLS, PCM16, REALTIME, over_grpc, over_webrtc, over_websocket
from benchmarks.stand_in import FRAME_MS
from config import Settings
from engine.memory import size

WARM_UP_TICKS = 4
STARTS_S = 60
CHURN_S = 2.0  # how long a conversation lasts where they come and go
SAMPLED_S = 10.0  # between two looks at the memory
SHOWN = 10
GRPC = "Triton's gRPC"
PATHS = (PCM16, REALTIME, CALLS)  # of the bridge
MAX_CALLS = 32  # that a core's Python carries, the bridge's or the clients'
CALL_STARTS_S = 0.2  # each, with the client's part on the same core


@dataclass(frozen=True)
class Bridge:
    """A bridge that runs for the bench."""

    url: str  # ws://...
    triton: str  # what is behind it, host:port
    process: int

    @property
    def memory_bytes(self) -> int:
        """Of the process, resident."""
        pages = int(Path(f"/proc/{self.process}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


def bench_crowd(settings: Settings, conversations: Sequence[int], seconds: float, idle: int) -> list[Row]:
    """A row for each number of conversations and protocol, calls up to `MAX_CALLS`.

    Memory is what a conversation adds to the bridge's.
    """
    rows = []
    for count in conversations:
        for path in (GRPC, *PATHS) if count <= MAX_CALLS else (GRPC, PCM16, REALTIME):
            with _bridge() as bridge:
                rows.append(asyncio.run(_measure(bridge, settings, path, count, seconds, idle)))
    return rows


@dataclass(frozen=True)
class Sample:
    """The bridge's memory at a moment."""

    at_s: float
    memory_bytes: int
    conversations: int  # that have come and gone


def bench_churn(settings: Settings, conversations: int, minutes: float) -> list[Sample]:
    """The bridge's memory while so many conversations of two seconds at once come and go, on every protocol."""
    with _bridge() as bridge:
        return asyncio.run(_churn(bridge, settings, conversations, minutes * 60))


@contextlib.contextmanager
def _bridge() -> Iterator[Bridge]:
    """A bridge on the first core, its stand-in and the clients on the others."""
    cores = sorted(os.sched_getaffinity(0))
    ports = [_free_port() for _ in range(2)]
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("SCA_")},
        "SCA_BRIDGE_PORT": str(ports[0]),
        "SCA_TRITON_GRPC_PORT": str(ports[1]),
        "SCA_BRIDGE_LOG_LEVEL": "warning",
    }
    commands = [["-m", "benchmarks.stand_in", str(ports[1])], ["-m", "commands", "bridge"]]
    others = set(cores[1:]) or set(cores)
    os.sched_setaffinity(0, others)
    processes = [
        subprocess.Popen([sys.executable, *each], env=environment, stdout=subprocess.DEVNULL) for each in commands
    ]
    try:
        os.sched_setaffinity(processes[1].pid, {cores[0]})
        _wait_until_ready(f"http://127.0.0.1:{ports[0]}/readyz")
        yield Bridge(f"ws://127.0.0.1:{ports[0]}", f"127.0.0.1:{ports[1]}", processes[1].pid)
    finally:
        for process in processes:
            process.kill()
            process.wait()
        os.sched_setaffinity(0, cores)


async def _measure(bridge: Bridge, settings: Settings, path: str, count: int, seconds: float, idle: int) -> Row:
    tick_s = settings.audio.tick_ms / 1000
    ticks = WARM_UP_TICKS + max(1, round(seconds / tick_s))
    empty = bridge.memory_bytes
    async with contextlib.AsyncExitStack() as silent:
        for _ in range(idle):
            address = bridge.url + (path if path == PCM16 else REALTIME)
            await silent.enter_async_context(connect(address, max_size=None, proxy=None))
        begin = time.monotonic() + (CALL_STARTS_S * count if path == CALLS else 0.0) + 1.0
        speakers = [_speak(bridge, path, settings, begin + tick_s * i / count, ticks) for i in range(count)]
        memory = asyncio.create_task(_memory_at(bridge, begin + seconds / 2))
        heard = await asyncio.gather(*speakers)
        used = (await memory - empty) // (count + idle)
    latencies = [latency for each in heard for latency in each[WARM_UP_TICKS:]]
    what = f"{path}, {idle} idle beside" if idle else path
    return Row.of(what, count, settings.audio.tick_ms, latencies, paced=True, memory_bytes=max(0, used))


async def _memory_at(bridge: Bridge, moment_s: float) -> int:
    await asyncio.sleep(max(0.0, moment_s - time.monotonic()))
    return bridge.memory_bytes


async def _speak(bridge: Bridge, path: str, settings: Settings, begin_s: float, ticks: int) -> list[float]:
    """Seconds from when the last of each tick that has sound of the microphone was spoken to the tick's answer."""
    in_a_tick = settings.audio.tick_ms // FRAME_MS
    frames = ticks * in_a_tick
    latencies: list[float] = []
    said = 0  # frames of the microphone that were answered
    # A tick more is said than is counted: after a filled-up tick the last would wait for it in vain.
    if path == GRPC:
        answers = over_grpc(bridge.triton, settings, begin_s, ticks)
    else:
        answers = (over_webrtc if path == CALLS else over_websocket)(bridge.url + path, begin_s, frames + in_a_tick)
    async with contextlib.aclosing(answers):
        async for heard, late_s in answers:
            if heard > said:  # else it was silence, by which the bridge keeps time where the microphone is late
                latencies.append(late_s)
            said = heard
            if said >= frames:
                return latencies
    raise RuntimeError(f"{said} frames of the microphone were answered, expected {frames}")


async def _churn(bridge: Bridge, settings: Settings, count: int, seconds: float) -> list[Sample]:
    begin, done = time.monotonic(), 0
    ticks = max(1, round(CHURN_S * 1000 / settings.audio.tick_ms))

    async def come_and_go(number: int) -> None:
        nonlocal done
        path = PATHS[number % len(PATHS)]
        while time.monotonic() < begin + seconds:
            await _speak(bridge, path, settings, time.monotonic(), ticks)
            done += 1

    crowd = [asyncio.create_task(come_and_go(number)) for number in range(count)]
    samples = []
    for _ in track(range(max(1, round(seconds / SAMPLED_S))), description="churn"):
        await asyncio.sleep(SAMPLED_S)
        samples.append(Sample(time.monotonic() - begin, bridge.memory_bytes, done))
    await asyncio.gather(*crowd)
    return samples


def show_churn(samples: Sequence[Sample]) -> Table:
    """Ten of the samples, the first and the last among them."""
    table = Table("minutes", "conversations so far", "the bridge's memory")
    for index in sorted({round(share * (len(samples) - 1)) for share in np.linspace(0, 1, SHOWN)}):
        sample = samples[index]
        table.add_row(f"{sample.at_s / 60:.1f}", str(sample.conversations), size(sample.memory_bytes))
    return table


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_ready(url: str) -> None:
    until_s = time.monotonic() + STARTS_S
    while True:
        try:
            with DIRECT.open(url, timeout=2):
                return
        except OSError as error:
            if time.monotonic() > until_s:
                raise RuntimeError(f"the bridge was not ready within {STARTS_S} s: {error}") from error
            time.sleep(0.1)
