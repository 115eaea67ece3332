"""Clients that send audio at the pace of microphones, one kind for each protocol, with `triton_stub` behind the bridge.

Each yields, for every response, the number of microphone frames that the stub has received and the delay of the last.
"""

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

from benchmarks.paced import LOUDNESS
from benchmarks.paced_client import FRAME_S, pace, paced_client
from benchmarks.webrtc_client import FRAME, Caller, opus_frame
from config import Settings
from config.settings import INPUT_HZ
from contract.events import Text
from frontend.tick import TickError, TickIn, new_sequence_id
from frontend.triton import TritonLink
from frontend.webrtc.tracks import OPUS_HZ

PCM16, REALTIME, CALLS = "/ws/pcm16", "/v1/realtime", "/v1/realtime/calls"
REALTIME_HZ = 24_000
TRANSCRIPT = "response.output_audio_transcript.delta"
Responses = AsyncGenerator[tuple[int, float], None]  # frames received by the stub, seconds since the last was spoken


async def over_grpc(address: str, settings: Settings, begin_s: float, ticks: int) -> Responses:
    """Hold a conversation with Triton; yield at each tick's response."""
    tick_s = settings.audio.tick_ms / 1000
    pcm = _noise()[: settings.audio.input_samples].tobytes()

    async def microphone() -> AsyncIterator[TickIn]:
        async for number in pace(tick_s, ticks, begin_s + tick_s):
            yield TickIn(pcm, start=number == 0, end=number == ticks - 1)

    link = TritonLink(settings, address)
    try:
        async for response in link.converse(new_sequence_id(), microphone()):
            if isinstance(response, TickError):
                raise response
            text = response.events[-1]
            assert isinstance(text, Text)
            received = int(text.text)
            yield received, _delay_s(begin_s, received)
    finally:
        await link.close()


async def over_pcm16(url: str, begin_s: float, frames: int) -> Responses:
    """Hold a conversation over /ws/pcm16; yield at each tick's audio."""
    async with paced_client(url) as client:
        sending = asyncio.create_task(
            client.send_audio(np.resize(_noise(), round(frames * FRAME_S * INPUT_HZ)), begin_s)
        )
        received = 0
        try:
            async for message in client:
                if isinstance(message, np.ndarray):
                    yield received, _delay_s(begin_s, received)
                elif message["type"] == "text":
                    received = int(message["text"])
        finally:
            sending.cancel()


async def over_realtime(url: str, begin_s: float, frames: int) -> Responses:
    """Hold a conversation over /v1/realtime; yield at each tick's audio. Raises `RuntimeError` for an error event."""
    async with connect(url, max_size=None, proxy=None) as client:
        sending = asyncio.create_task(_send_realtime(client, begin_s, frames))
        received = 0
        try:
            async for message in client:
                event = json.loads(message)
                if event["type"] == "error":
                    raise RuntimeError(event["error"]["message"])
                if event["type"] == TRANSCRIPT:
                    received = int(event["delta"])
                elif event["type"] == "response.output_audio.delta":
                    yield received, _delay_s(begin_s, received)
        finally:
            sending.cancel()


async def over_webrtc(url: str, begin_s: float, frames: int) -> Responses:
    """Hold a conversation in a WebRTC call; yield at each tick's text."""
    microphone = CallMicrophone(frames)
    caller = Caller(microphone)
    seen = 0  # events
    try:
        await caller.call(url.removesuffix(CALLS).replace("ws:", "http:"))
        microphone.begin_s = begin_s = max(begin_s, time.monotonic())
        while True:
            event = await caller.wait_for(TRANSCRIPT, seen)
            received, seen = int(event["delta"]), caller.events.index(event, seen) + 1
            yield received, caller.event_times_s[seen - 1] - (begin_s + received * FRAME_S)
    finally:
        await caller.peer.close()


class CallMicrophone(MediaStreamTrack):
    """`frames` frames of noise, each when it has been spoken; silent until `begin_s` has been set."""

    kind = "audio"

    def __init__(self, frames: int):
        super().__init__()
        self.begin_s = math.inf  # on the monotonic clock
        self._sent, self._frames = 0, frames
        self._noise = _noise(OPUS_HZ)[:FRAME]

    async def recv(self) -> AudioFrame:
        """Return the next frame; called by aiortc."""
        while (wait_s := self.begin_s + (self._sent + 1) * FRAME_S - time.monotonic()) > 0:
            await asyncio.sleep(min(wait_s, FRAME_S))
        self._sent += 1
        if self._sent > self._frames:
            raise MediaStreamError
        return opus_frame(self._noise, (self._sent - 1) * FRAME)


def _delay_s(begin_s: float, frames: int) -> float:
    """Return the seconds since frame number `frames` was spoken."""
    return time.monotonic() - (begin_s + frames * FRAME_S)


def _noise(rate: int = INPUT_HZ) -> np.ndarray:
    """Return a second of noise. Before resampling no sample is zero: zeros are the bridge's padding."""
    noise = np.random.RandomState(0).randint(-LOUDNESS, LOUDNESS, INPUT_HZ).astype(np.int16) | 1
    return noise if rate == INPUT_HZ else np.asarray(soxr.resample(noise, INPUT_HZ, rate), np.int16)


async def _send_realtime(client: ClientConnection, begin_s: float, frames: int) -> None:
    frame = _noise(REALTIME_HZ)[: round(REALTIME_HZ * FRAME_S)].tobytes()
    event = json.dumps({"type": "input_audio_buffer.append", "audio": base64.b64encode(frame).decode()})
    async for _ in pace(FRAME_S, frames, begin_s + FRAME_S):
        await client.send(event)
