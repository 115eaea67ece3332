"""The routes of `/v1/realtime/calls`: OpenAI's Realtime protocol over WebRTC."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from config import Settings
from frontend.admission import Reservation
from frontend.bridge import Bridge
from frontend.plugins import Plugins
from frontend.realtime.connection import RealtimeConnection
from frontend.realtime.events import RealtimeError, parse_object
from frontend.realtime.routes import bad_request
from frontend.session.channel import Channel
from frontend.session.player import Player
from frontend.webrtc.calls import Calls
from frontend.webrtc.offer import Offer


def add_to(plugins: Plugins, settings: Settings) -> None:
    """Serve calls of the Realtime protocol."""

    def add_routes(app: FastAPI, bridge: Bridge) -> None:
        calls = Calls(bridge, begin)
        plugins.closers.append(calls.close)
        _add_routes(app, calls)

    plugins.routes.append(add_routes)


def begin(
    bridge: Bridge, channel: Channel, reservation: Reservation, offer: Offer, player: Player
) -> RealtimeConnection:
    """Begin a Realtime session over a call. Raises `RefusedError`."""
    try:
        session = parse_object(offer.session or "{}", "session")
        return RealtimeConnection(channel, bridge, reservation, offer.model, session, player)
    except RealtimeError as error:
        raise bad_request(error) from error


def _add_routes(app: FastAPI, calls: Calls) -> None:
    @app.post("/v1/realtime/calls")
    async def call(request: Request) -> Response:
        """Answer an SDP offer."""
        answer = await calls.begin(request)
        headers = {"Location": f"/v1/realtime/calls/{answer.call_id}"}
        return Response(answer.sdp, HTTPStatus.CREATED, headers, "application/sdp")

    @app.get("/v1/realtime/calls/{call_id}")
    async def about_call(request: Request, call_id: str) -> JSONResponse:
        """Report the duration of a call's latest tick, which no event of the protocol contains."""
        return JSONResponse(calls.get(request, call_id).about)

    @app.post("/v1/realtime/calls/{call_id}/hangup")
    async def hang_up(request: Request, call_id: str) -> Response:
        """End a call."""
        calls.get(request, call_id).hang_up()
        return Response()
