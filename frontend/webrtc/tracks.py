"""The audio of a call: the client's track to PCM16 at 16 kHz, and the assistant's voice as a track of 20 ms frames."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from fractions import Fraction
from typing import Any

import numpy as np
from aiortc import MediaStreamTrack
from aiortc.mediastreams import MediaStreamError
from av import AudioFrame

from config.settings import INPUT_HZ, OUTPUT_HZ
from frontend.audio.pcm import SAMPLE_BYTES
from frontend.audio.resampler import Resampler
from frontend.session.player import Cut

OPUS_HZ = 48_000
FRAME_S = 0.02
FRAME_BYTES = int(FRAME_S * OUTPUT_HZ) * SAMPLE_BYTES
CUSHION_S = 0.06  # delay of a response's first frame, so that a later tick may be late
MAX_LOST_S = 2.0  # silence replaces lost packets up to this duration; with a larger gap the client's clock has jumped
LATE_S = 0.2  # a frame later than this begins the track's clock again


async def received(track: MediaStreamTrack) -> AsyncIterator[bytes]:
    """Yield a client's track as PCM16 at 16 kHz; lost packets become silence, so that time passes."""
    resampler, due = Resampler(OPUS_HZ, INPUT_HZ, at_once=True), None
    while True:
        try:
            frame = await track.recv()
        except MediaStreamError:  # the track has ended
            return
        assert isinstance(frame, AudioFrame)
        channels = frame.to_ndarray().reshape(-1, len(frame.layout.channels)).astype(np.float32)
        samples = channels @ np.full(channels.shape[1], 1 / channels.shape[1], np.float32)
        lost = 0 if due is None or frame.pts is None else frame.pts - due
        if 0 < lost <= MAX_LOST_S * OPUS_HZ:
            samples = np.concatenate([np.zeros(lost, np.float32), samples])
        if frame.pts is not None:
            due = frame.pts + frame.samples
        if pcm := resampler.feed(samples).tobytes():
            yield pcm


class Loudspeaker(MediaStreamTrack):
    """The assistant's voice in a call, a `Player`. The client buffers nothing: audio that is not sent is not heard."""

    kind = "audio"

    def __init__(self, send: Callable[[dict[str, Any]], None]):
        """Begin with silence; `send` sends the protocol's events of an output buffer."""
        super().__init__()
        self._send = send
        self._due: deque[tuple[str, bytes | None]] = deque()  # a response's id with 20 ms of audio, or None: its end
        self._rest = b""  # less than a frame
        self._playing = ""  # id of the response that is played
        self._played = 0  # frames played of that response
        self._cleared = ""  # id of the latest response that was cut off
        self._plays_at_s = 0.0  # time of the first frame of a response
        self._next_s = 0.0  # time of the next frame, on the loop's clock
        self._sent = 0  # samples

    def play(self, response_id: str, pcm: bytes, is_last: bool) -> None:
        """Append audio of a response, PCM16 at 24 kHz; the last frame is padded with silence.

        Audio of a response that was cut off is dropped.
        """
        if response_id == self._cleared:
            return
        if not self._due and not self._playing:
            self._plays_at_s = self._now() + CUSHION_S
        data = self._rest + pcm
        if is_last:
            data = data.ljust(-(-len(data) // FRAME_BYTES) * FRAME_BYTES, b"\0")
        whole = len(data) // FRAME_BYTES * FRAME_BYTES
        self._rest = data[whole:]
        for start in range(0, whole, FRAME_BYTES):
            self._due.append((response_id, data[start : start + FRAME_BYTES]))
        if is_last:
            self._due.append((response_id, None))

    def clear(self) -> Cut | None:
        """Drop the audio that waits; returns the response that was cut off, if there was one."""
        response_id = self._playing or (self._due[0][0] if self._due else "")
        played = self._played if self._playing else 0
        self._due.clear()
        self._rest, self._playing = b"", ""
        if not response_id:
            return None
        self._cleared = response_id
        self._report("cleared", response_id)
        return Cut(response_id, round(played * FRAME_S * 1000))

    async def recv(self) -> AudioFrame:
        """Return the next 20 ms when they are due: the voice, or silence."""
        now_s = self._now()
        if now_s - self._next_s > LATE_S:
            self._next_s = now_s
        await asyncio.sleep(self._next_s - now_s)
        self._next_s += FRAME_S
        frame = AudioFrame("s16", "mono", FRAME_BYTES // SAMPLE_BYTES)
        frame.planes[0].update(self._take())
        frame.sample_rate, frame.time_base, frame.pts = OUTPUT_HZ, Fraction(1, OUTPUT_HZ), self._sent
        self._sent += frame.samples
        return frame

    def _take(self) -> bytes:
        while self._due and (self._playing or self._now() >= self._plays_at_s):
            response_id, frame = self._due.popleft()
            if frame is None:
                if self._playing:
                    self._report("stopped", response_id)
                self._playing = ""
                continue
            if self._playing != response_id:
                if self._playing:
                    self._report("stopped", self._playing)
                self._playing, self._played = response_id, 0
                self._report("started", response_id)
            self._played += 1
            return frame
        return bytes(FRAME_BYTES)

    def _report(self, change: str, response_id: str) -> None:
        self._send({"type": f"output_audio_buffer.{change}", "response_id": response_id})

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
