"""Load of the bridge without the engine: one core for the bridge, and a stub of Triton that responds immediately.

Clients send frames of 20 ms at the pace of microphones; idle clients hold an open WebSocket. A tick's time is counted
from its last spoken sample to its audio at the client; in a call, whose audio has its own pace, to its text. The same
measurement without the bridge, over Triton's gRPC, is the reference: the difference is the bridge's share.
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

from benchmarks.load_clients import CALLS, PCM16, REALTIME, over_grpc, over_pcm16, over_realtime, over_webrtc
from benchmarks.paced import WARM_UP_TICKS
from benchmarks.paced_client import FRAME_MS
from benchmarks.row import Row
from benchmarks.server import DIRECT
from config import Settings
from engine.memory import size

START_TIMEOUT_S = 60
LEAD_S = 1.0  # time from the start of the clients to the first tick
CHURN_S = 2.0  # duration of a conversation in `bench_churn`
SAMPLE_INTERVAL_S = 10.0  # time between two samples of the memory
SHOWN_SAMPLES = 10
GRPC = "Triton's gRPC"
PATHS = (PCM16, REALTIME, CALLS)  # the bridge's protocols
CLIENTS = {PCM16: over_pcm16, REALTIME: over_realtime, CALLS: over_webrtc}
MAX_CALLS = 32  # calls that one core can carry in Python, in the bridge or in the clients
CALL_START_S = 0.2  # time to open a call, with the client's part on the same core


@dataclass(frozen=True)
class Bridge:
    """A bridge that was started for the benchmark."""

    url: str  # ws://...
    triton: str  # address of its Triton stub, host:port
    process: int

    @property
    def memory_bytes(self) -> int:
        """Resident memory of the process in bytes."""
        pages = int(Path(f"/proc/{self.process}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


def bench_bridge_load(settings: Settings, conversations: Sequence[int], seconds: float, idle: int) -> list[Row]:
    """Measure each number of conversations with each protocol; calls up to `MAX_CALLS`.

    A row's memory is the bridge's growth for each conversation. `idle`: further WebSockets without audio.
    """
    rows = []
    for count in conversations:
        for path in (GRPC, *PATHS) if count <= MAX_CALLS else (GRPC, PCM16, REALTIME):
            with _bridge() as bridge:
                rows.append(asyncio.run(_measure(bridge, settings, path, count, seconds, idle)))
    return rows


@dataclass(frozen=True)
class Sample:
    """The bridge's memory at one time."""

    at_s: float
    memory_bytes: int
    conversations: int  # completed conversations


def bench_churn(settings: Settings, conversations: int, minutes: float) -> list[Sample]:
    """Sample the bridge's memory while `conversations` clients hold short conversations, with every protocol."""
    with _bridge() as bridge:
        return asyncio.run(_churn(bridge, settings, conversations, minutes * 60))


@contextlib.contextmanager
def _bridge() -> Iterator[Bridge]:
    """Run a bridge on the first core; its Triton stub and the clients run on the other cores."""
    cores = sorted(os.sched_getaffinity(0))
    ports = [_free_port() for _ in range(2)]
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("SCA_")},
        "SCA_BRIDGE_PORT": str(ports[0]),
        "SCA_TRITON_GRPC_PORT": str(ports[1]),
        "SCA_BRIDGE_LOG_LEVEL": "warning",
    }
    commands = [["-m", "benchmarks.triton_stub", str(ports[1])], ["-m", "commands", "bridge"]]
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
        begin = time.monotonic() + (CALL_START_S * count if path == CALLS else 0.0) + LEAD_S
        clients = [_converse(bridge, path, settings, begin + tick_s * i / count, ticks) for i in range(count)]
        memory = asyncio.create_task(_memory_at(bridge, begin + seconds / 2))
        measured = await asyncio.gather(*clients)
        used = (await memory - empty) // (count + idle)
    latencies = [latency for each in measured for latency in each[WARM_UP_TICKS:]]
    what = f"{path}, {idle} idle" if idle else path
    return Row.of(what, count, settings.audio.tick_ms, latencies, paced=True, memory_bytes=max(0, used))


async def _memory_at(bridge: Bridge, moment_s: float) -> int:
    await asyncio.sleep(max(0.0, moment_s - time.monotonic()))
    return bridge.memory_bytes


async def _converse(bridge: Bridge, path: str, settings: Settings, begin_s: float, ticks: int) -> list[float]:
    """Return the seconds from the last spoken sample of each tick with microphone audio to the tick's response."""
    frames_per_tick = settings.audio.tick_ms // FRAME_MS
    frames = ticks * frames_per_tick
    latencies: list[float] = []
    answered = 0  # microphone frames with a response
    # One tick more is sent than measured: if the bridge padded a tick, the last measured one needs audio after it.
    if path == GRPC:
        responses = over_grpc(bridge.triton, settings, begin_s, ticks)
    else:
        responses = CLIENTS[path](bridge.url + path, begin_s, frames + frames_per_tick)
    async with contextlib.aclosing(responses):
        async for received, delay_s in responses:
            if received > answered:  # otherwise the tick was the bridge's padding for a late microphone
                latencies.append(delay_s)
            answered = received
            if answered >= frames:
                return latencies
    raise RuntimeError(f"expected responses to {frames} microphone frames, got {answered}")


async def _churn(bridge: Bridge, settings: Settings, count: int, seconds: float) -> list[Sample]:
    begin, completed = time.monotonic(), 0
    ticks = max(1, round(CHURN_S * 1000 / settings.audio.tick_ms))

    async def converse_repeatedly(number: int) -> None:
        nonlocal completed
        path = PATHS[number % len(PATHS)]
        while time.monotonic() < begin + seconds:
            await _converse(bridge, path, settings, time.monotonic(), ticks)
            completed += 1

    clients = [asyncio.create_task(converse_repeatedly(number)) for number in range(count)]
    samples = []
    for _ in track(range(max(1, round(seconds / SAMPLE_INTERVAL_S))), description="churn"):
        await asyncio.sleep(SAMPLE_INTERVAL_S)
        samples.append(Sample(time.monotonic() - begin, bridge.memory_bytes, completed))
    await asyncio.gather(*clients)
    return samples


def show_churn(samples: Sequence[Sample]) -> Table:
    """Return a table of SHOWN_SAMPLES samples, including the first and the last."""
    table = Table("minutes", "completed conversations", "the bridge's memory")
    for index in sorted({round(share * (len(samples) - 1)) for share in np.linspace(0, 1, SHOWN_SAMPLES)}):
        sample = samples[index]
        table.add_row(f"{sample.at_s / 60:.1f}", str(sample.conversations), size(sample.memory_bytes))
    return table


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_ready(url: str) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            with DIRECT.open(url, timeout=2):
                return
        except OSError as error:
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"the bridge was not ready within {START_TIMEOUT_S} s: {error}") from error
            time.sleep(0.1)
