"""A WebRTC client of aiortc, and a network that loses packets and delays them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import urllib.request
from collections.abc import AsyncIterator
from fractions import Fraction
from typing import Any

import numpy as np
import soxr
from aiortc import MediaStreamTrack, RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError
from av import AudioFrame

from benchmarks.manners import said_by_flite

OPUS_HZ, FRAME = 48_000, 960
HOST_CANDIDATE = re.compile(r"^(a=candidate:\S+ 1 udp \d+) (\d+\.\d+\.\d+\.\d+) (\d+) (typ host)(?=\r?$)", re.M)


class Microphone(MediaStreamTrack):
    """What is to be said, and silence."""

    kind = "audio"

    def __init__(self) -> None:
        super().__init__()
        self.to_say = np.zeros(0, np.int16)
        self._sent, self._begun_s = 0, 0.0

    def say(self, words: str) -> None:
        """A sentence by a voice that the training never heard."""
        self.to_say = np.append(self.to_say, soxr.resample(said_by_flite(words, "rms"), 16_000, OPUS_HZ))

    async def recv(self) -> AudioFrame:
        now = asyncio.get_running_loop().time()
        self._begun_s = self._begun_s or now
        await asyncio.sleep(max(0.0, self._begun_s + self._sent / OPUS_HZ - now))
        part, self.to_say = self.to_say[:FRAME], self.to_say[FRAME:]
        samples = np.pad(part, (0, FRAME - len(part))).astype(np.int16)
        frame = AudioFrame.from_ndarray(samples[None], "s16", "mono")
        frame.sample_rate, frame.time_base, frame.pts = OPUS_HZ, Fraction(1, OPUS_HZ), self._sent
        self._sent += FRAME
        return frame


class Network:
    """Two UDP ports between client and server, which see only these."""

    def __init__(self, loss: float, jitter_s: float):
        self._loss, self._jitter_s, self._draw = loss, jitter_s, random.Random(1)
        self._client: tuple[str, int] | None = None
        self._server: tuple[str, int] | None = None
        self.lost = self.passed = 0
        self.is_cut = False  # nothing comes through

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        self._to_client, _ = await loop.create_datagram_endpoint(lambda: _Side(self._from_client), ("0.0.0.0", 0))
        self._to_server, _ = await loop.create_datagram_endpoint(lambda: _Side(self._from_server), ("0.0.0.0", 0))

    def offer(self, sdp: str) -> str:
        """The client's offer, as if it lived at this network's edge."""
        self._client, sdp = _moved(sdp, self._to_server.get_extra_info("sockname")[1])
        return sdp

    def answer(self, sdp: str) -> str:
        """The server's answer, likewise."""
        self._server, sdp = _moved(sdp, self._to_client.get_extra_info("sockname")[1])
        return sdp

    def close(self) -> None:
        self._to_client.close()
        self._to_server.close()

    def _from_client(self, data: bytes) -> None:
        self._carry(self._to_server, data, self._server)

    def _from_server(self, data: bytes) -> None:
        self._carry(self._to_client, data, self._client)

    def _carry(self, way: asyncio.DatagramTransport, data: bytes, to: tuple[str, int] | None) -> None:
        if to is None or self.is_cut or self._draw.random() < self._loss:
            self.lost += 1
            return
        self.passed += 1
        delay_s = self._draw.uniform(0, self._jitter_s)
        asyncio.get_running_loop().call_later(delay_s, lambda: way.is_closing() or way.sendto(data, to))


class _Side(asyncio.DatagramProtocol):
    def __init__(self, take: Any):
        self._take = take

    def datagram_received(self, data: bytes, _: Any) -> None:
        self._take(data)


def _moved(sdp: str, port: int) -> tuple[tuple[str, int], str]:
    """Where the SDP's owner is, and the SDP with one candidate alone: another port there."""
    found = HOST_CANDIDATE.search(sdp)
    assert found, sdp
    moved = f"{found[1]} {found[2]} {port} {found[4]}"
    lines = sdp.replace(found[0], "HERE").splitlines()
    kept = [moved if line == "HERE" else line for line in lines if not line.startswith("a=candidate")]
    return (found[2], int(found[3])), "\r\n".join(kept) + "\r\n"


class Caller:
    """A call: events as they come, and the sound that is heard."""

    def __init__(self) -> None:
        self.peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.microphone = Microphone()
        self.events: list[dict[str, Any]] = []
        self._came_s: list[float] = []  # when, of each
        self.heard: list[np.ndarray] = []  # frames of 20 ms at 48 kHz
        self.location = ""
        self._changed = asyncio.Event()
        self._listening: asyncio.Task[None] | None = None
        self.peer.addTrack(self.microphone)
        self.channel = self.peer.createDataChannel("oai-events")
        self.channel.on("message", self._take)
        self.peer.on("track", self._listen)

    async def call(self, http: str, network: Network | None = None) -> None:
        await self.peer.setLocalDescription(await self.peer.createOffer())
        offer = self.peer.localDescription.sdp
        answer = await asyncio.to_thread(self._post, http, network.offer(offer) if network else offer)
        answer = network.answer(answer) if network else answer
        await self.peer.setRemoteDescription(RTCSessionDescription(answer, "answer"))
        await self.wait_for("session.created")

    def send(self, kind: str, **fields: Any) -> None:
        self.channel.send(json.dumps({"type": kind, **fields}))

    async def wait_for(self, kind: str, after: int = 0) -> dict[str, Any]:
        """The first event of a kind among those after so many."""

        async def found() -> dict[str, Any]:
            while True:
                self._changed.clear()
                for event in self.events[after:]:
                    if event["type"] == kind:
                        return event
                await self._changed.wait()

        try:
            return await asyncio.wait_for(found(), 30)
        except asyncio.TimeoutError:
            raise AssertionError(f"no {kind} among {self.kinds(after)}") from None

    def kinds(self, after: int = 0) -> list[str]:
        return [event["type"] for event in self.events[after:]]

    def told_s(self, event: dict[str, Any]) -> float:
        """When an event came, on the loop's clock."""
        return self._came_s[self.events.index(event)]

    def _post(self, http: str, offer: str) -> str:
        request = urllib.request.Request(
            f"{http}/v1/realtime/calls", offer.encode(), {"Content-Type": "application/sdp"}
        )
        with urllib.request.urlopen(request, timeout=20) as answer:
            assert answer.status == 201
            self.location = answer.headers["Location"]
            return str(answer.read().decode())

    def _take(self, message: str) -> None:
        self.events.append(json.loads(message))
        self._came_s.append(asyncio.get_running_loop().time())
        self._changed.set()

    def _listen(self, track: MediaStreamTrack) -> None:
        async def listen() -> None:
            with contextlib.suppress(MediaStreamError):
                while True:
                    frame = await track.recv()
                    self.heard.append(frame.to_ndarray().reshape(-1, 2)[:, 0])

        self._listening = asyncio.create_task(listen())


@contextlib.asynccontextmanager
async def calling(http: str, network: Network | None = None) -> AsyncIterator[Caller]:
    """A call that is open."""
    if network:
        await network.open()
    caller = Caller()
    try:
        await caller.call(http, network)
        yield caller
        if network:  # a goodbye could be lost
            request = urllib.request.Request(f"{http}{caller.location}/hangup", b"")
            await asyncio.to_thread(urllib.request.urlopen, request)
    finally:
        await caller.peer.close()
        if network:
            network.close()
