"""Caller that sends sentences, and a network that loses and delays packets."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import urllib.request
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import soxr
from aiortc import MediaStreamTrack
from av import AudioFrame

import benchmarks.webrtc_client
from benchmarks.webrtc_client import FRAME, opus_frame
from frontend.webrtc.tracks import OPUS_HZ
from training.judges.flite import synthesize

HOST_CANDIDATE = re.compile(r"^(a=candidate:\S+ 1 udp \d+) (\d+\.\d+\.\d+\.\d+) (\d+) (typ host)(?=\r?$)", re.M)


class Microphone(MediaStreamTrack):
    """Audio track of queued sentences, and of silence if the queue is empty."""

    kind = "audio"

    def __init__(self) -> None:
        super().__init__()
        self.queued = np.zeros(0, np.int16)
        self._sent, self._begun_s = 0, 0.0

    def speak(self, words: str) -> None:
        """Queue a sentence by a voice that is not in the training data."""
        self.queued = np.append(self.queued, soxr.resample(synthesize(words, "rms"), 16_000, OPUS_HZ))

    async def recv(self) -> AudioFrame:
        now = asyncio.get_running_loop().time()
        self._begun_s = self._begun_s or now
        await asyncio.sleep(max(0.0, self._begun_s + self._sent / OPUS_HZ - now))
        frame, self.queued = self.queued[:FRAME], self.queued[FRAME:]
        samples = np.pad(frame, (0, FRAME - len(frame))).astype(np.int16)
        self._sent += FRAME
        return opus_frame(samples, self._sent - FRAME)


class Network:
    """Two UDP ports between client and server, each of which knows only the address of one port."""

    def __init__(self, loss: float, jitter_s: float):
        self._loss, self._jitter_s, self._draw = loss, jitter_s, random.Random(1)
        self._client: tuple[str, int] | None = None
        self._server: tuple[str, int] | None = None
        self.lost = self.passed = 0
        self.is_down = False  # True: every packet is lost

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        self._to_client, _ = await loop.create_datagram_endpoint(lambda: _Side(self._from_client), ("0.0.0.0", 0))
        self._to_server, _ = await loop.create_datagram_endpoint(lambda: _Side(self._from_server), ("0.0.0.0", 0))

    def offer(self, sdp: str) -> str:
        """Return the client's offer with the address of the network in place of the client's."""
        self._client, sdp = _redirect(sdp, self._to_server.get_extra_info("sockname")[1])
        return sdp

    def answer(self, sdp: str) -> str:
        """Return the server's answer with the address of the network in place of the server's."""
        self._server, sdp = _redirect(sdp, self._to_client.get_extra_info("sockname")[1])
        return sdp

    def close(self) -> None:
        self._to_client.close()
        self._to_server.close()

    def _from_client(self, data: bytes) -> None:
        self._forward(self._to_server, data, self._server)

    def _from_server(self, data: bytes) -> None:
        self._forward(self._to_client, data, self._client)

    def _forward(self, transport: asyncio.DatagramTransport, data: bytes, to: tuple[str, int] | None) -> None:
        if to is None or self.is_down or self._draw.random() < self._loss:
            self.lost += 1
            return
        self.passed += 1
        delay_s = self._draw.uniform(0, self._jitter_s)
        asyncio.get_running_loop().call_later(delay_s, lambda: transport.is_closing() or transport.sendto(data, to))


class _Side(asyncio.DatagramProtocol):
    def __init__(self, forward: Any):
        self._forward = forward

    def datagram_received(self, data: bytes, _: Any) -> None:
        self._forward(data)


def _redirect(sdp: str, port: int) -> tuple[tuple[str, int], str]:
    """Return the address in an SDP, and the SDP with only one candidate: another port of that host."""
    found = HOST_CANDIDATE.search(sdp)
    assert found, sdp
    redirected = f"{found[1]} {found[2]} {port} {found[4]}"
    lines = sdp.replace(found[0], "HERE").splitlines()
    kept = [redirected if line == "HERE" else line for line in lines if not line.startswith("a=candidate")]
    return (found[2], int(found[3])), "\r\n".join(kept) + "\r\n"


class Caller(benchmarks.webrtc_client.Caller):
    """Caller whose microphone sends sentences."""

    def __init__(self) -> None:
        self.microphone = Microphone()
        super().__init__(self.microphone)


@contextlib.asynccontextmanager
async def calling(http: str, network: Network | None = None) -> AsyncIterator[Caller]:
    """Open a call, and end the call after the test."""
    if network:
        await network.open()
    caller = Caller()
    try:
        await caller.call(http, *((network.offer, network.answer) if network else ()))
        yield caller
        if network:  # the end of the call could be lost
            request = urllib.request.Request(f"{http}{caller.location}/hangup", b"")
            await asyncio.to_thread(urllib.request.urlopen, request)
    finally:
        await caller.peer.close()
        if network:
            network.close()
