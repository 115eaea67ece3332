"""The route of `/ws/pcm16`."""

from __future__ import annotations

from fastapi import FastAPI, WebSocket

from config.loader import shown
from contract.errors import ErrorCode
from frontend import handshake
from frontend.access import RefusedError
from frontend.bridge import Bridge
from frontend.pcm16.conversation import Pcm16Conversation
from frontend.pcm16.frames import ProtocolError, error_event
from frontend.pcm16.resumable_socket import ResumableSockets
from frontend.session.ended import CloseCode

SUBPROTOCOL = "pcm16"
MAX_DIGITS = 18


def add_routes(app: FastAPI, bridge: Bridge) -> None:
    """Add the WebSocket to the application."""
    sockets = ResumableSockets()

    @app.websocket("/ws/pcm16")
    async def pcm16(socket: WebSocket) -> None:
        """Serve a conversation, whose options are the query's parameters; with `resume`, continue one."""
        try:
            if "resume" in socket.query_params:
                await _resume(socket, bridge, sockets)
            else:
                await handshake.serve(
                    socket, bridge, SUBPROTOCOL, lambda place: Pcm16Conversation(socket, bridge, place, sockets)
                )
        except ProtocolError as error:
            await socket.send_json(error_event(error.code, error.message))
            await socket.close(CloseCode.POLICY_VIOLATION)


async def _resume(socket: WebSocket, bridge: Bridge, sockets: ResumableSockets) -> None:
    """Continue a conversation over `socket`. Raises `ProtocolError`."""
    try:
        with bridge.admission.socket(bridge.access.check(socket), resumes=True):
            await handshake.accept(socket, SUBPROTOCOL)
            received = socket.query_params.get("received", "")
            if not (received.isascii() and received.isdigit() and len(received) <= MAX_DIGITS):
                message = f"received: expected a number of messages, got {shown(received)}"
                raise ProtocolError(ErrorCode.BAD_OPTION, message)
            await sockets.get(socket.query_params["resume"]).resume(socket, int(received))
    except RefusedError as refusal:
        await socket.send_denial_response(handshake.refusal_response(refusal))
