"""A WebRTC client of aiortc, as a voice application would have one."""

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

FRAME = round(FRAME_S * OPUS_HZ)
WAITS_S = 30
unchanged: Callable[[str], str] = str


def opus_frame(samples: np.ndarray, at: int) -> AudioFrame:
    """20 ms for a track: `FRAME` samples, int16 at 48 kHz, the first of which is number `at` of the track."""
    frame = AudioFrame.from_ndarray(samples[None], "s16", "mono")
    frame.sample_rate, frame.time_base, frame.pts = OPUS_HZ, Fraction(1, OPUS_HZ), at
    return frame


class Caller:
    """A call: events as they come, and the sound that is heard."""

    def __init__(self, microphone: MediaStreamTrack) -> None:
        self.peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.events: list[dict[str, Any]] = []
        self.came_s: list[float] = []  # when, of each, on the loop's clock
        self.heard: list[np.ndarray] = []  # frames of 20 ms at 48 kHz
        self.location = ""
        self._changed = asyncio.Event()
        self._listening: asyncio.Task[None] | None = None
        self.peer.addTrack(microphone)
        self.channel = self.peer.createDataChannel("oai-events")
        self.channel.on("message", self._take)
        self.peer.on("track", self._listen)

    async def call(
        self, http: str, sent: Callable[[str], str] = unchanged, came: Callable[[str], str] = unchanged
    ) -> None:
        """Returns when the call is open; `sent` and `came` may change the SDP of the offer and of the answer."""
        await self.peer.setLocalDescription(await self.peer.createOffer())
        answer = await asyncio.to_thread(self.post, http, sent(self.peer.localDescription.sdp))
        await self.peer.setRemoteDescription(RTCSessionDescription(came(answer), "answer"))
        await self.wait_for("session.created")

    def post(self, http: str, offer: str) -> str:
        """The answer to an offer."""
        request = urllib.request.Request(
            f"{http}/v1/realtime/calls", offer.encode(), {"Content-Type": "application/sdp"}
        )
        with DIRECT.open(request, timeout=WAITS_S) as answer:
            self.location = answer.headers["Location"]
            return str(answer.read().decode())

    def send(self, kind: str, **fields: Any) -> None:
        """An event to the server."""
        self.channel.send(json.dumps({"type": kind, **fields}))

    async def wait_for(self, kind: str, after: int = 0) -> dict[str, Any]:
        """The first event of a kind among those after so many. Raises `AssertionError` where none comes."""

        async def found() -> dict[str, Any]:
            while True:
                self._changed.clear()
                for event in self.events[after:]:
                    if event["type"] == kind:
                        return event
                await self._changed.wait()

        try:
            return await asyncio.wait_for(found(), WAITS_S)
        except asyncio.TimeoutError:
            raise AssertionError(f"no {kind} among {self.kinds(after)}") from None

    def kinds(self, after: int = 0) -> list[str]:
        """The types of the events after so many."""
        return [event["type"] for event in self.events[after:]]

    def told_s(self, event: dict[str, Any]) -> float:
        """When an event came."""
        return self.came_s[self.events.index(event)]

    def _take(self, message: str) -> None:
        self.events.append(json.loads(message))
        self.came_s.append(asyncio.get_running_loop().time())
        self._changed.set()

    def _listen(self, track: MediaStreamTrack) -> None:
        async def listen() -> None:
            with contextlib.suppress(MediaStreamError):
                while True:
                    frame = await track.recv()
                    assert isinstance(frame, AudioFrame)
                    self.heard.append(frame.to_ndarray().reshape(-1, 2)[:, 0])

        self._listening = asyncio.create_task(listen())
