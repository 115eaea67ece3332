"""`POST /v1/realtime/calls`: the protocol over WebRTC, Opus both ways and a data channel for the events."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator
from http import HTTPStatus
from typing import NamedTuple

from aiortc import MediaStreamTrack, RTCConfiguration, RTCIceServer, RTCPeerConnection, RTCSessionDescription
from fastapi import Request
from starlette.formparsers import MultiPartException, MultiPartParser

from config import Settings
from config.loader import shown
from frontend.access import Caller, RefusedError
from frontend.admission import Reservation
from frontend.body import bad_request, read_body
from frontend.bridge import Bridge
from frontend.realtime.clock import BYTES_A_SECOND
from frontend.realtime.connection import RealtimeConnection
from frontend.realtime.events import Event, RealtimeError, new_id, parse_object
from frontend.webrtc.data_channel import DataChannel, bound_fragments
from frontend.webrtc.tracks import Loudspeaker, heard, order_packets

MAX_CANDIDATES = 100  # addresses of a client, each of which is tried
MAX_SECTIONS = 4  # of an SDP: sound and events, with room for what is not served
CONNECTS_S = 10.0  # from the answer until both sides have found each other
CLOSES_S = 5.0  # how long a peer connection may take to close
MAX_AHEAD_S = 5.0  # of sound that may come before its time
OPUS = "audio/opus"
logger = logging.getLogger("sca.bridge")


class Offer(NamedTuple):
    """What a client calls with."""

    sdp: str
    session: Event
    model: str


class Answer(NamedTuple):
    """What it gets."""

    call_id: str
    sdp: str


class Calls:
    """The calls that are open."""

    def __init__(self, bridge: Bridge):
        self._bridge = bridge
        self._calls: dict[str, Call] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def begin(self, request: Request) -> Answer:
        """Answers a client's offer; the call goes on by itself. Raises `RefusedError`."""
        caller = self._bridge.access.check(request)
        try:
            offer = await _read_offer(request)
            answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
            task = asyncio.create_task(self._hold(caller, offer, answered))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return await answered
        except RealtimeError as error:
            raise bad_request(error) from error

    def get(self, request: Request, call_id: str) -> Call:
        """A caller's own call. Raises `RefusedError` where it has no such call."""
        caller, call = self._bridge.access.check(request), self._calls.get(call_id)
        if call is None or call.caller.name != caller.name:
            raise RefusedError(HTTPStatus.NOT_FOUND, "call_not_found", f"there is no call {shown(call_id)}")
        return call

    async def end(self) -> None:
        """Ends all calls, each with its END to Triton."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLOSES_S)

    async def _hold(self, caller: Caller, offer: Offer, answered: asyncio.Future[Answer]) -> None:
        try:
            with self._bridge.admission.socket(caller) as place:
                call = Call(self._bridge, place, offer)
                self._calls[call.id] = call
                self._bridge.open.add(call.connection)
                try:
                    answered.set_result(Answer(call.id, await call.answer(offer.sdp)))
                    await call.run()
                finally:
                    self._bridge.open.discard(call.connection)
                    del self._calls[call.id]
                    await call.close()
        except Exception as error:
            if answered.done():
                raise
            answered.set_exception(error)


class Call:
    """One client's peer connection, and the conversation over it."""

    def __init__(self, bridge: Bridge, place: Reservation, offer: Offer):
        """Raises `RealtimeError` where the offer's session cannot be."""
        self.id, self.caller = new_id("rtc"), place.caller
        self._channel = DataChannel("m=application" in offer.sdp)
        self._loudspeaker = Loudspeaker(self._tell)
        self.connection = RealtimeConnection(
            self._channel, bridge, place, offer.model, offer.session, self._loudspeaker
        )
        self._peer = _peer_connection(bridge.settings)
        self._peer.on("datachannel", self._channel.open)
        self._peer.on("connectionstatechange", self._note_state)
        self._connected = asyncio.Event()
        self._track: MediaStreamTrack | None = None

    async def answer(self, sdp: str) -> str:
        """The SDP that answers the client's. Raises `RealtimeError`."""
        try:
            await self._peer.setRemoteDescription(RTCSessionDescription(sdp, "offer"))
            self._take_one_track()
            if self._peer.sctp:
                bound_fragments(self._peer.sctp, self.hang_up)
            await self._peer.setLocalDescription(await self._peer.createAnswer())
        except RealtimeError:
            raise
        except Exception as error:  # aiortc's parser has no error of its own
            raise RealtimeError(f"the SDP cannot be used: {shown(repr(error))}", code="invalid_offer") from error
        return self._peer.localDescription.sdp

    def _take_one_track(self) -> None:
        """Sound by Opus; nothing else is received, since nobody would read it. Raises `RealtimeError`."""
        own = None
        for each in self._peer.getTransceivers():
            if each.kind == "audio":
                each._codecs = [codec for codec in each._codecs if codec.mimeType.lower() == OPUS]
            if own is None and each.kind == "audio" and each._codecs:
                own = each
            else:
                each.direction = "inactive"
        if own is None:
            raise RealtimeError("the SDP offers no sound, expected a track of Opus", code="invalid_offer")
        self._track = own.receiver.track
        own.sender.replaceTrack(self._loudspeaker)
        own.direction = "sendrecv"
        order_packets(own.receiver)

    async def run(self) -> None:
        """Returns when the conversation is over, or has not begun in time."""
        try:
            await asyncio.wait_for(self._connect(), CONNECTS_S)
        except asyncio.TimeoutError:
            self.connection.give_up("not_connected")
            return
        hearing = asyncio.create_task(self._hear())
        hearing.add_done_callback(lambda task: None if task.cancelled() or not task.exception() else self.hang_up())
        try:
            await self.connection.run()
        finally:
            hearing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await hearing

    @property
    def about(self) -> Event:
        """Its id, and what its latest tick took in milliseconds; None before the first."""
        tick_s = self.connection.tick_s
        return {"id": self.id, "object": "realtime.call", "tick_ms": None if tick_s is None else tick_s * 1000}

    def hang_up(self) -> None:
        """The client wants no more, or is gone."""
        self._channel.hang_up()
        self._connected.set()
        self.connection.hang_up()

    async def close(self) -> None:
        """Gives back the sockets."""
        self._loudspeaker.stop()
        try:
            await asyncio.wait_for(self._peer.close(), CLOSES_S)
        except Exception:  # its place and its sockets are given back whatever aiortc stumbles over
            logger.warning("a call does not close", exc_info=True)
            for transceiver in self._peer.getTransceivers():
                if transport := transceiver.receiver.transport:
                    with contextlib.suppress(Exception):
                        await asyncio.wait_for(transport.transport.stop(), CLOSES_S)

    async def _connect(self) -> None:
        """Returns when sound and events can go, or the client has hung up."""
        await self._connected.wait()
        await self._channel.opened()

    async def _hear(self) -> None:
        assert self._track
        now = asyncio.get_running_loop().time
        begun_s, given_s = now(), 0.0
        async for pcm in heard(self._track):
            seconds = len(pcm) / BYTES_A_SECOND
            if given_s + seconds > now() - begun_s + MAX_AHEAD_S:  # faster than anybody speaks
                continue
            given_s += seconds
            await self.connection.hear(pcm)

    def _note_state(self) -> None:
        if self._peer.connectionState == "connected":
            self._connected.set()
        elif self._peer.connectionState in ("failed", "closed"):
            self.hang_up()

    def _tell(self, event: Event) -> None:
        self.connection.send(event)


def _peer_connection(settings: Settings) -> RTCPeerConnection:
    servers = [RTCIceServer(each.url, each.user, each.password) for each in settings.bridge.ice]
    return RTCPeerConnection(RTCConfiguration(iceServers=servers))


async def _read_offer(request: Request) -> Offer:
    """The offer of a request: its body is the SDP, or a form of `sdp` and `session`. Raises `RealtimeError`."""
    body, model = await read_body(request), request.query_params.get("model", "")
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/sdp":
        sdp, session = body.decode(errors="replace"), {}
    elif kind == "multipart/form-data":
        form = await _form(request, body)
        sdp, session = form.get("sdp", ""), parse_object(form.get("session") or "{}", "session")
    else:
        raise RefusedError(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            "unsupported_content_type",
            f"the content type is {shown(kind)}, expected application/sdp or multipart/form-data",
        )
    lines = sdp.splitlines()
    for what, most in (("a=candidate", MAX_CANDIDATES), ("m=", MAX_SECTIONS)):
        if (found := sum(line.startswith(what) for line in lines)) > most:
            raise RealtimeError(f"the SDP has {found} lines {what}, expected at most {most}", code="invalid_offer")
    return Offer(sdp, session, model)


async def _form(request: Request, body: bytes) -> dict[str, str]:
    """The fields of a form, files as text. Raises `RealtimeError`."""

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        form = await MultiPartParser(request.headers, stream()).parse()
    except (MultiPartException, KeyError) as error:
        raise RealtimeError(f"the body is no form: {shown(str(error))}", code="invalid_form") from None
    fields = {}
    for name, value in form.items():
        fields[name] = value if isinstance(value, str) else (await value.read()).decode(errors="replace")
    return fields
