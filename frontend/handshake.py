"""The beginning of a client's connection: refused before the upgrade, or accepted and served."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import WebSocket
from fastapi.responses import JSONResponse

from frontend import metrics
from frontend.access import RefusedError
from frontend.admission import Reservation
from frontend.bridge import Bridge, OpenConversation
from frontend.log import logger


def refusal_response(refusal: RefusedError) -> JSONResponse:
    """Return a refusal as an HTTP response; a WebSocket receives it instead of the upgrade."""
    metrics.REFUSED.labels(refusal.code.value).inc()
    logger.info("refused", extra={"about": {"code": refusal.code.value}})
    return JSONResponse(refusal.body, refusal.status, refusal.headers)


async def serve(
    socket: WebSocket, bridge: Bridge, subprotocol: str, begin: Callable[[Reservation], OpenConversation]
) -> None:
    """Serve a conversation over a WebSocket; a refused client receives an HTTP response."""
    try:
        with bridge.admission.socket(bridge.access.check(socket)) as reservation:
            await accept(socket, subprotocol)
            conversation = begin(reservation)
            with bridge.opened(conversation):
                await conversation.run()
    except RefusedError as refusal:
        await socket.send_denial_response(refusal_response(refusal))


async def accept(socket: WebSocket, subprotocol: str) -> None:
    """Accept a WebSocket, with `subprotocol` if the client offers it."""
    offered = socket.scope.get("subprotocols") or ()
    await socket.accept(subprotocol if subprotocol in offered else None)
