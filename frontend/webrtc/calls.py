"""Calls over WebRTC: Opus in both directions, and a data channel for the events of a protocol."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from http import HTTPStatus
from typing import Any, NamedTuple, Protocol

from aiortc import MediaStreamTrack, RTCConfiguration, RTCIceServer, RTCPeerConnection, RTCSessionDescription
from fastapi import Request

from config import Settings
from config.loader import shown
from contract.errors import ErrorCode
from frontend.access import Caller, RefusedError
from frontend.admission import Reservation
from frontend.audio.pcm import INPUT_BYTES_PER_SECOND
from frontend.bridge import Bridge, OpenConversation
from frontend.log import logger
from frontend.session.channel import Channel
from frontend.session.player import Player
from frontend.webrtc.aiortc_private import bound_fragments, keep_codecs, order_packets
from frontend.webrtc.data_channel import DataChannel
from frontend.webrtc.offer import Offer, invalid_offer, read_offer
from frontend.webrtc.tracks import Loudspeaker, received

CONNECTS_S = 10.0  # timeout of the connection, after the answer
CLOSES_S = 5.0  # timeout of the close of a peer connection
MAX_AHEAD_S = 5.0  # audio further ahead of its time is dropped
OPUS = "audio/opus"


class Connection(OpenConversation, Protocol):
    """A conversation of a protocol over a call."""

    tick_s: float | None

    async def append_audio(self, pcm: bytes) -> None:
        """Append audio of the client, PCM16 at 16 kHz."""

    def send(self, event: dict[str, Any], /) -> None:
        """Send an event of the protocol."""

    def hang_up(self) -> None:
        """Note that the client has left."""

    def give_up(self) -> None:
        """End a conversation that has not begun, because the client did not connect."""


class Begin(Protocol):
    """A function that begins a conversation of a protocol. Raises `RefusedError` for an invalid session."""

    def __call__(self, bridge: Bridge, channel: Channel, reservation: Reservation, offer: Offer, player: Player) -> Any:
        """Return the `Connection`."""


class Answer(NamedTuple):
    """The answer to an offer."""

    call_id: str
    sdp: str


class Calls:
    """The open calls of a protocol."""

    def __init__(self, bridge: Bridge, begin: Begin):
        self._bridge, self._begin = bridge, begin
        self._calls: dict[str, Call] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def begin(self, request: Request) -> Answer:
        """Answer a client's offer; the call runs in a task. Raises `RefusedError`."""
        caller = self._bridge.access.check(request)
        offer = await read_offer(request)
        answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(self._serve(caller, offer, answered))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await answered

    def get(self, request: Request, call_id: str) -> Call:
        """Return a caller's call. Raises `RefusedError` if the caller has no such call."""
        caller, call = self._bridge.access.check(request), self._calls.get(call_id)
        if call is None or call.caller.name != caller.name:
            raise RefusedError(HTTPStatus.NOT_FOUND, ErrorCode.CALL_NOT_FOUND, f"there is no call {shown(call_id)}")
        return call

    async def close(self) -> None:
        """End all calls; the engine receives an END for each."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLOSES_S)

    async def _serve(self, caller: Caller, offer: Offer, answered: asyncio.Future[Answer]) -> None:
        try:
            with self._bridge.admission.socket(caller) as reservation:
                call = Call(self._bridge, reservation, offer, self._begin)
                self._calls[call.id] = call
                try:
                    with self._bridge.opened(call.connection):
                        answered.set_result(Answer(call.id, await call.answer(offer.sdp)))
                        await call.run()
                finally:
                    del self._calls[call.id]
                    await call.close()
        except Exception as error:
            if answered.done():
                raise
            answered.set_exception(error)


class Call:
    """One client's peer connection, and the conversation over it."""

    def __init__(self, bridge: Bridge, reservation: Reservation, offer: Offer, begin: Begin):
        """Raise `RefusedError` if the offer's session is invalid."""
        self.id, self.caller = f"rtc_{secrets.token_hex(12)}", reservation.caller
        self._channel = DataChannel("m=application" in offer.sdp)
        self._loudspeaker = Loudspeaker(lambda event: self.connection.send(event))
        self.connection: Connection = begin(bridge, self._channel, reservation, offer, self._loudspeaker)
        self._peer = _peer_connection(bridge.settings)
        self._peer.on("datachannel", self._channel.open)
        self._peer.on("connectionstatechange", self._note_state)
        self._connected = asyncio.Event()
        self._track: MediaStreamTrack | None = None

    async def answer(self, sdp: str) -> str:
        """Return the SDP that answers the client's. Raises `RefusedError`."""
        try:
            return await self._answer(sdp)
        except RefusedError:
            self.connection.give_up()
            raise

    async def _answer(self, sdp: str) -> str:
        try:
            await self._peer.setRemoteDescription(RTCSessionDescription(sdp, "offer"))
            self._use_one_track()
            if self._peer.sctp:
                bound_fragments(self._peer.sctp, self.hang_up)
            await self._peer.setLocalDescription(await self._peer.createAnswer())
        except RefusedError:
            raise
        except Exception as error:  # aiortc's parser raises exceptions of many types
            raise invalid_offer(f"the SDP cannot be used: {shown(repr(error))}") from error
        return self._peer.localDescription.sdp

    def _use_one_track(self) -> None:
        """Receive one track of Opus and nothing else. Raises `RefusedError`."""
        own = None
        for each in self._peer.getTransceivers():
            if each.kind == "audio" and keep_codecs(each, OPUS) and own is None:
                own = each
            else:
                each.direction = "inactive"
        if own is None:
            raise invalid_offer("expected an audio track of Opus in the SDP, got none")
        self._track = own.receiver.track
        own.sender.replaceTrack(self._loudspeaker)
        own.direction = "sendrecv"
        order_packets(own.receiver)

    async def run(self) -> None:
        """Serve the client until the conversation is over, or give up if the client does not connect in time."""
        try:
            await asyncio.wait_for(self._connect(), CONNECTS_S)
        except asyncio.TimeoutError:
            self.connection.give_up()
            return
        receiving = asyncio.create_task(self._receive())
        receiving.add_done_callback(lambda task: None if task.cancelled() or not task.exception() else self.hang_up())
        try:
            await self.connection.run()
        finally:
            receiving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await receiving

    @property
    def about(self) -> dict[str, Any]:
        """The call's id, and the duration of its latest tick in milliseconds."""
        tick_s = self.connection.tick_s
        return {"id": self.id, "object": "realtime.call", "tick_ms": None if tick_s is None else tick_s * 1000}

    def hang_up(self) -> None:
        """Note that the client has left, or ends the call."""
        self._channel.hang_up()
        self._connected.set()
        self.connection.hang_up()

    async def close(self) -> None:
        """Close the peer connection and its sockets."""
        self._loudspeaker.stop()
        try:
            await asyncio.wait_for(self._peer.close(), CLOSES_S)
        except Exception:  # the sockets must be closed whatever aiortc raises
            logger.warning("a call does not close", exc_info=True)
            for transceiver in self._peer.getTransceivers():
                if transport := transceiver.receiver.transport:
                    with contextlib.suppress(Exception):
                        await asyncio.wait_for(transport.transport.stop(), CLOSES_S)

    async def _connect(self) -> None:
        """Return when audio and events can be sent, or the client has hung up."""
        await self._connected.wait()
        await self._channel.opened()

    async def _receive(self) -> None:
        assert self._track
        now = asyncio.get_running_loop().time
        begun_s, appended_s = now(), 0.0
        async for pcm in received(self._track):
            seconds = len(pcm) / INPUT_BYTES_PER_SECOND
            if appended_s + seconds > now() - begun_s + MAX_AHEAD_S:  # faster than speech
                continue
            appended_s += seconds
            await self.connection.append_audio(pcm)

    def _note_state(self) -> None:
        if self._peer.connectionState == "connected":
            self._connected.set()
        elif self._peer.connectionState in ("failed", "closed"):
            self.hang_up()


def _peer_connection(settings: Settings) -> RTCPeerConnection:
    servers = [RTCIceServer(each.url, each.user, each.password) for each in settings.bridge.ice]
    return RTCPeerConnection(RTCConfiguration(iceServers=servers))
