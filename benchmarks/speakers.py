"""Clients who speak at the pace of microphones, a kind a protocol: of Triton itself, and of each of the bridge's."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator

import numpy as np
import soxr
from aiortc import MediaStreamTrack
from aiortc.mediastreams import MediaStreamError
from av import AudioFrame
from websockets.asyncio.client import ClientConnection, connect

from benchmarks.caller import FRAME, Caller, opus_frame
from benchmarks.paced import LOUDNESS
from benchmarks.stand_in import FRAME_MS
from config import Settings
from frontend.tick import TickError, TickIn, new_sequence_id
from frontend.triton import TritonLink
from frontend.webrtc.tracks import OPUS_HZ

FRAME_S = FRAME_MS / 1000
PCM16, REALTIME, CALLS = "/ws/pcm16", "/v1/realtime", "/v1/realtime/calls"
TOLD = {"text": "text", "response.output_audio_transcript.delta": "delta"}  # by the stand-in, and where in the event
Answers = AsyncGenerator[tuple[int, float], None]  # how many frames were heard, how long ago the last was spoken


async def over_grpc(address: str, settings: Settings, begin_s: float, ticks: int) -> Answers:
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
            heard = int(answer.events[-1].to_json()["text"])
            yield heard, time.monotonic() - (begin_s + heard * FRAME_S)
    finally:
        await link.close()


async def over_websocket(url: str, begin_s: float, frames: int) -> Answers:
    """A conversation over a WebSocket, at each tick's sound."""
    async with connect(url, max_size=None, proxy=None) as client:
        speaking = asyncio.create_task(_microphone(client, url, begin_s, frames))
        try:
            async for heard in _sounds(client):
                yield heard, time.monotonic() - (begin_s + heard * FRAME_S)
        finally:
            speaking.cancel()


async def over_webrtc(url: str, begin_s: float, frames: int) -> Answers:
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
