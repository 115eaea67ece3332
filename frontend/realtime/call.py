"""`POST /v1/realtime/calls`: the protocol over WebRTC, Opus both ways and a data channel for the events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from http import HTTPStatus
from typing import NamedTuple

from aiortc import MediaStreamTrack, RTCConfiguration, RTCIceServer, RTCPeerConnection, RTCSessionDescription
from fastapi import Request
from starlette.formparsers import MultiPartException, MultiPartParser

from config import Settings
from config.loader import shown
from frontend.access import Caller, RefusedError
from frontend.admission import Place
from frontend.bridge import Bridge
from frontend.protocol import CloseCode
from frontend.realtime.body import parse_object, read_body
from frontend.realtime.call_sound import Loudspeaker, heard, order_packets
from frontend.realtime.channel import DataChannel
from frontend.realtime.connection import RealtimeConnection
from frontend.realtime.events import Event, RealtimeError, new_id

MOST_CANDIDATES = 100  # addresses of a client, each of which is tried


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
            raise RefusedError(HTTPStatus.BAD_REQUEST, error.code, error.message) from error

    async def hang_up(self, request: Request, call_id: str) -> None:
        """Ends a call for its client. Raises `RefusedError` where the caller has no such call."""
        caller, call = self._bridge.access.check(request), self._calls.get(call_id)
        if call is None or call.caller.name != caller.name:
            raise RefusedError(HTTPStatus.NOT_FOUND, "call_not_found", f"there is no call {shown(call_id)}")
        call.hang_up()

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
        except (RefusedError, RealtimeError) as error:
            if answered.done():
                raise
            answered.set_exception(error)


class Call:
    """One client's peer connection, and the conversation over it."""

    def __init__(self, bridge: Bridge, place: Place, offer: Offer):
        """Raises `RealtimeError` where the offer's session cannot be."""
        self.id, self.caller = new_id("rtc"), place.caller
        self._connect_s = bridge.settings.bridge.read_timeout_s
        self._channel = DataChannel("m=application" in offer.sdp)
        self._loudspeaker = Loudspeaker(self._tell)
        self.connection = RealtimeConnection(
            self._channel, bridge, place, offer.model, offer.session, self._loudspeaker
        )
        self._peer = _peer_connection(bridge.settings)
        self._peer.on("datachannel", self._channel.open)
        self._peer.on("connectionstatechange", self._note_state)
        self._peer.on("track", self._note_track)
        self._connected = asyncio.Event()
        self._track: MediaStreamTrack | None = None

    async def answer(self, sdp: str) -> str:
        """The SDP that answers the client's. Raises `RealtimeError`."""
        try:
            await self._peer.setRemoteDescription(RTCSessionDescription(sdp, "offer"))
        except Exception as error:  # aiortc's parser has no error of its own
            raise RealtimeError(f"the SDP cannot be used: {shown(repr(error))}", code="invalid_offer") from error
        if self._track is None:
            raise RealtimeError("the SDP offers no sound, expected a track of Opus", code="invalid_offer")
        self._peer.addTrack(self._loudspeaker)
        order_packets(self._peer)
        await self._peer.setLocalDescription(await self._peer.createAnswer())
        return self._peer.localDescription.sdp

    async def run(self) -> None:
        """Returns when the conversation is over."""
        hearing = asyncio.create_task(self._hear())
        try:
            await self.connection.run()
        finally:
            hearing.cancel()
            await asyncio.gather(hearing, return_exceptions=True)

    def hang_up(self) -> None:
        """The client wants no more."""
        self._channel.hang_up()

    async def close(self) -> None:
        """Gives back the sockets."""
        self._loudspeaker.stop()
        await self._peer.close()

    async def _hear(self) -> None:
        try:
            await asyncio.wait_for(self._connected.wait(), self._connect_s)
        except asyncio.TimeoutError:
            message = f"no connection within {self._connect_s:g} s (bridge.read_timeout_s)"
            await self.connection.end("not_connected", message, CloseCode.POLICY_VIOLATION)
            return
        assert self._track
        async for pcm in heard(self._track):
            await self.connection.hear(pcm)

    def _note_state(self) -> None:
        if self._peer.connectionState == "connected":
            self._connected.set()
        elif self._peer.connectionState in ("failed", "closed"):
            self._channel.hang_up()

    def _note_track(self, track: MediaStreamTrack) -> None:
        if track.kind == "audio" and self._track is None:
            self._track = track

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
        sdp, session = form.get("sdp", ""), parse_object(form.get("session", ""), "session")
    else:
        raise RefusedError(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            "unsupported_content_type",
            f"the content type is {shown(kind)}, expected application/sdp or multipart/form-data",
        )
    if (found := sdp.count("a=candidate")) > MOST_CANDIDATES:
        message = f"the SDP has {found} candidates, expected at most {MOST_CANDIDATES}"
        raise RealtimeError(message, code="invalid_offer")
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
