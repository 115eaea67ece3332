"""The bridge alone, on one core, before a stand-in for Triton that answers at once.

Clients speak at the pace of microphones, in frames of 20 ms; others have a WebSocket and say nothing. A tick's time is
counted from when its last sample was spoken to its sound at the client; in a call, whose voice has its own pace, to its
text. The same from Triton itself, beside each, is what the bridge's is to be compared with.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soxr
from aiortc import MediaStreamTrack
from aiortc.mediastreams import MediaStreamError
from av import AudioFrame
from rich.progress import track
from rich.table import Table
from websockets.asyncio.client import ClientConnection, connect

from benchmarks.caller import FRAME, Caller, opus_frame
from benchmarks.paced import LOUDNESS
from benchmarks.report import Row
from benchmarks.server import DIRECT
from benchmarks.stand_in import FRAME_MS
from config import Settings
from engine.memory import size
from frontend.realtime.call_sound import OPUS_HZ
from frontend.triton import TickError, TickIn, TritonLink, new_sequence_id

FRAME_S = FRAME_MS / 1000
WARM_UP_TICKS = 4
STARTS_S = 60
CHURN_S = 2.0  # how long a conversation lasts where they come and go
SAMPLED_S = 10.0  # between two looks at the memory
SHOWN = 10
GRPC, PCM16, REALTIME, CALLS = "Triton's gRPC", "/ws/pcm16", "/v1/realtime", "/v1/realtime/calls"
PATHS = (PCM16, REALTIME, CALLS)  # of the bridge
Answers = AsyncGenerator[tuple[int, float], None]  # how many frames were heard, how long ago the last was spoken
MOST_CALLS = 32  # that a core's Python carries, the bridge's or the clients'
CALL_STARTS_S = 0.2  # each, with the client's part on the same core
TOLD = {"text": "text", "response.output_audio_transcript.delta": "delta"}  # by the stand-in, and where in the event


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
    """A row for each number of conversations and protocol, calls up to `MOST_CALLS`.

    Memory is what a conversation adds to the bridge's.
    """
    rows = []
    for count in conversations:
        for path in (GRPC, *PATHS) if count <= MOST_CALLS else (GRPC, PCM16, REALTIME):
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
        answers = _converse(bridge.triton, settings, begin_s, ticks)
    else:
        answers = (_call if path == CALLS else _connect)(bridge.url + path, begin_s, frames + in_a_tick)
    async with contextlib.aclosing(answers):
        async for heard, late_s in answers:
            if heard > said:  # else it was silence, by which the bridge keeps time where the microphone is late
                latencies.append(late_s)
            said = heard
            if said >= frames:
                return latencies
    raise RuntimeError(f"{said} frames of the microphone were answered, expected {frames}")


async def _converse(address: str, settings: Settings, begin_s: float, ticks: int) -> Answers:
    """A conversation with Triton, at each tick's answer."""
    tick_s = settings.audio.tick_ms / 1000
    pcm = _noise()[: settings.audio.input_samples].tobytes()

    async def microphone() -> AsyncIterator[TickIn]:
        for number in range(ticks):
            await asyncio.sleep(max(0.0, begin_s + (number + 1) * tick_s - time.monotonic()))
            yield TickIn(pcm, start=number == 0, end=number == ticks - 1)

    link = TritonLink(settings, address)
    try:
        async for answer in link.converse(new_sequence_id(), microphone()):
            if isinstance(answer, TickError):
                raise answer
            heard = int(answer.events[-1]["text"])
            yield heard, time.monotonic() - (begin_s + heard * FRAME_S)
    finally:
        await link.close()


async def _connect(url: str, begin_s: float, frames: int) -> Answers:
    """A conversation over a WebSocket, at each tick's sound."""
    async with connect(url, max_size=None, proxy=None) as client:
        speaking = asyncio.create_task(_microphone(client, url, begin_s, frames))
        try:
            async for heard in _sounds(client):
                yield heard, time.monotonic() - (begin_s + heard * FRAME_S)
        finally:
            speaking.cancel()


async def _call(url: str, begin_s: float, frames: int) -> Answers:
    """A WebRTC call, at each tick's text."""
    microphone = CallMicrophone(frames)
    caller = Caller(microphone)
    seen = 0  # events
    try:
        await caller.call(url.removesuffix(CALLS).replace("ws:", "http:"))
        microphone.begin_s = begin_s = max(begin_s, time.monotonic())
        while True:
            event = await caller.wait_for("response.output_audio_transcript.delta", seen)
            heard, seen = int(event["delta"]), caller.events.index(event, seen) + 1
            yield heard, caller.came_s[seen - 1] - (begin_s + heard * FRAME_S)
    finally:
        await caller.peer.close()


class CallMicrophone(MediaStreamTrack):
    """So many frames of noise, each when it has been spoken; nothing before it is told when to begin."""

    kind = "audio"

    def __init__(self, frames: int):
        super().__init__()
        self.begin_s = math.inf  # on the monotonic clock
        self._sent, self._frames = 0, frames
        self._noise = soxr.resample(_noise(), 16_000, OPUS_HZ).astype(np.int16)[:FRAME]

    async def recv(self) -> AudioFrame:
        """See aiortc."""
        while (wait_s := self.begin_s + (self._sent + 1) * FRAME_S - time.monotonic()) > 0:
            await asyncio.sleep(min(wait_s, FRAME_S))
        self._sent += 1
        if self._sent > self._frames:
            raise MediaStreamError
        return opus_frame(self._noise, (self._sent - 1) * FRAME)


def _noise() -> np.ndarray:
    """A second of it; no sample is silence, which is the bridge's."""
    return np.random.RandomState(0).randint(-LOUDNESS, LOUDNESS, 16_000).astype(np.int16) | 1


async def _microphone(client: ClientConnection, url: str, begin_s: float, frames: int) -> None:
    rate = 16_000 if url.endswith(PCM16) else 24_000
    pcm = soxr.resample(_noise(), 16_000, rate).astype(np.int16)
    frame = pcm[: round(rate * FRAME_S)].tobytes()
    event = json.dumps({"type": "input_audio_buffer.append", "audio": base64.b64encode(frame).decode()})
    for number in range(frames):
        await asyncio.sleep(max(0.0, begin_s + (number + 1) * FRAME_S - time.monotonic()))
        await client.send(frame if rate == 16_000 else event)


async def _sounds(client: ClientConnection) -> AsyncIterator[int]:
    """At each tick's sound, how many frames of the microphone the stand-in has heard.

    Raises `RuntimeError` with an error's words.
    """
    heard = 0
    async for message in client:
        if isinstance(message, bytes):
            yield heard
            continue
        event = json.loads(message)
        if event["type"] == "error":
            raise RuntimeError(event.get("message") or event["error"]["message"])
        if event["type"] in TOLD:
            heard = int(event[TOLD[event["type"]]])
        if event["type"] == "response.output_audio.delta":
            yield heard


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
