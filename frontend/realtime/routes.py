"""The routes of `/v1/realtime`: OpenAI's Realtime protocol over a WebSocket, and its short-lived keys."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import FastAPI, Request, WebSocket
from fastapi.responses import JSONResponse

from config import Settings
from contract.errors import ErrorCode
from frontend import handshake
from frontend.access import RefusedError
from frontend.bridge import Bridge
from frontend.ephemeral_keys import EphemeralKeys
from frontend.plugins import Plugins
from frontend.realtime.client_secrets import make_client_secret
from frontend.realtime.connection import RealtimeConnection
from frontend.realtime.events import RealtimeError

SUBPROTOCOL = "realtime"
NOT_SERVED = ("call_id", "intent")  # query parameters of OpenAI's sideband and transcription sessions


def add_to(plugins: Plugins, settings: Settings) -> None:
    """Serve the Realtime protocol."""
    plugins.routes.append(add_routes)


def add_routes(app: FastAPI, bridge: Bridge) -> None:
    """Add the WebSocket and the keys to the application."""
    keys = EphemeralKeys()
    bridge.access.resolvers.append(keys.resolve)

    @app.post("/v1/realtime/client_secrets")
    async def client_secrets(request: Request) -> JSONResponse:
        """Return a short-lived key for a browser."""
        try:
            return JSONResponse(await make_client_secret(request, bridge, keys))
        except RealtimeError as error:
            raise bad_request(error) from error

    @app.websocket("/v1/realtime")
    async def realtime(socket: WebSocket) -> None:
        """Serve a session; each WebSocket is a new one."""
        if found := [name for name in NOT_SERVED if name in socket.query_params]:
            message = f"{' and '.join(found)}: not supported, every WebSocket is a new session"
            refusal = RefusedError(HTTPStatus.NOT_FOUND, ErrorCode.NOT_SERVED, message)
            await socket.send_denial_response(handshake.refusal_response(refusal))
            return
        model = socket.query_params.get("model", "")
        await handshake.serve(
            socket, bridge, SUBPROTOCOL, lambda place: RealtimeConnection(socket, bridge, place, model)
        )


def bad_request(error: RealtimeError) -> RefusedError:
    """Return the protocol's error about a body as a refusal."""
    return RefusedError(HTTPStatus.BAD_REQUEST, ErrorCode(error.code), error.message, param=error.param)
