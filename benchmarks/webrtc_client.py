"""A WebRTC client of aiortc, as a voice application would use one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import urllib.request
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
from aiortc import MediaStreamTrack, RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError
from av import AudioFrame

from benchmarks.server import DIRECT
from frontend.webrtc.tracks import FRAME_S, OPUS_HZ

FRAME = round(FRAME_S * OPUS_HZ)  # samples
TIMEOUT_S = 30
unchanged: Callable[[str], str] = str


def opus_frame(samples: np.ndarray, position: int) -> AudioFrame:
    """Return a track's frame of 20 ms: `FRAME` samples, int16 at 48 kHz; `position`: the first sample in the track."""
    frame = AudioFrame.from_ndarray(samples[None], "s16", "mono")
    frame.sample_rate, frame.time_base, frame.pts = OPUS_HZ, Fraction(1, OPUS_HZ), position
    return frame


class Caller:
    """A call: its received events and audio."""

    def __init__(self, microphone: MediaStreamTrack) -> None:
        self.peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.events: list[dict[str, Any]] = []
        self.event_times_s: list[float] = []  # arrival of each event on the loop's clock
        self.heard: list[np.ndarray] = []  # received frames of 20 ms at 48 kHz
        self.location = ""
        self._changed = asyncio.Event()
        self._listening: asyncio.Task[None] | None = None
        self.peer.addTrack(microphone)
        self.channel = self.peer.createDataChannel("oai-events")
        self.channel.on("message", self._receive)
        self.peer.on("track", self._listen)

    async def call(
        self, http: str, change_offer: Callable[[str], str] = unchanged, change_answer: Callable[[str], str] = unchanged
    ) -> None:
        """Open the call; the callables may change the SDP of the offer and of the answer."""
        await self.peer.setLocalDescription(await self.peer.createOffer())
        answer = await asyncio.to_thread(self.post, http, change_offer(self.peer.localDescription.sdp))
        await self.peer.setRemoteDescription(RTCSessionDescription(change_answer(answer), "answer"))
        await self.wait_for("session.created")

    def post(self, http: str, offer: str) -> str:
        """Send an offer; return the answer's SDP."""
        request = urllib.request.Request(
            f"{http}/v1/realtime/calls", offer.encode(), {"Content-Type": "application/sdp"}
        )
        with DIRECT.open(request, timeout=TIMEOUT_S) as response:
            self.location = response.headers["Location"]
            return str(response.read().decode())

    def send(self, kind: str, **fields: Any) -> None:
        """Send an event."""
        self.channel.send(json.dumps({"type": kind, **fields}))

    async def wait_for(self, kind: str, after: int = 0) -> dict[str, Any]:
        """Return the first event of a kind with index `after` or later. Raises `AssertionError` after TIMEOUT_S."""

        async def first() -> dict[str, Any]:
            while True:
                self._changed.clear()
                for event in self.events[after:]:
                    if event["type"] == kind:
                        return event
                await self._changed.wait()

        try:
            return await asyncio.wait_for(first(), TIMEOUT_S)
        except asyncio.TimeoutError:
            raise AssertionError(f"expected {kind}, got {self.kinds(after)}") from None

    def kinds(self, after: int = 0) -> list[str]:
        """Return the types of the events with index `after` or later."""
        return [event["type"] for event in self.events[after:]]

    def received_s(self, event: dict[str, Any]) -> float:
        """Return the time of arrival of an event."""
        return self.event_times_s[self.events.index(event)]

    def _receive(self, message: str) -> None:
        self.events.append(json.loads(message))
        self.event_times_s.append(asyncio.get_running_loop().time())
        self._changed.set()

    def _listen(self, track: MediaStreamTrack) -> None:
        async def listen() -> None:
            with contextlib.suppress(MediaStreamError):
                while True:
                    frame = await track.recv()
                    assert isinstance(frame, AudioFrame)
                    self.heard.append(frame.to_ndarray().reshape(-1, 2)[:, 0])

        self._listening = asyncio.create_task(listen())
