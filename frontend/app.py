"""The bridge: FastAPI on one port, a WebSocket a conversation, the page, and two probes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path

from fastapi import FastAPI, Request, WebSocket
from fastapi.responses import JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.middleware.cors import CORSMiddleware

from config import Settings
from config.loader import shown
from frontend import metrics, traces
from frontend.access import RefusedError
from frontend.admission import Reservation
from frontend.bridge import Bridge
from frontend.headers import SecurityHeaders
from frontend.log import log_to_stderr, logger
from frontend.pcm16.conversation import Pcm16Conversation
from frontend.pcm16.frames import ProtocolError, error_event
from frontend.realtime.client_secrets import make_client_secret
from frontend.realtime.connection import RealtimeConnection
from frontend.session.ended import CloseCode
from frontend.suggestions import suggestions
from frontend.webrtc.calls import Calls

PAGE = Path(__file__).parent / "static"
MAX_DIGITS = 19


def create_app(settings: Settings) -> FastAPI:
    """The bridge's application; it comes up without Triton and is ready once Triton is. Raises `SettingsError`."""
    bridge = Bridge(settings)
    calls = Calls(bridge)
    log_to_stderr(settings.bridge.log_level)
    traces.send_to(settings.bridge.traces_url)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await bridge.connect()
        watching = asyncio.create_task(bridge.watch())
        yield
        watching.cancel()
        await calls.end()
        await bridge.servers.close()
        await traces.flush()

    app = FastAPI(title="sca bridge", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.bridge = bridge
    app.add_middleware(SecurityHeaders)
    if settings.bridge.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.bridge.origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],  # clients name their libraries in headers of their own
            expose_headers=["Location"],
        )

    @app.exception_handler(RefusedError)
    async def refused(_: Request, refusal: RefusedError) -> JSONResponse:
        return _refused(refusal)

    @app.get("/healthz")
    async def healthz() -> JSONResponse:
        """The bridge itself runs."""
        admission = bridge.admission
        return JSONResponse({"status": "ok", "conversations": admission.conversations, "sockets": admission.sockets})

    @app.get("/healthz/engine")
    async def engine_health() -> JSONResponse:
        """The engine answers: Triton calls itself alive while a stage of it is dead."""
        if problem := bridge.engine_problem:
            return JSONResponse({"status": "dead", "reason": problem}, status_code=503)
        return JSONResponse({"status": "ok"})

    @app.get("/readyz")
    async def readyz() -> JSONResponse:
        """A conversation could begin now."""
        if reason := await bridge.not_ready():
            return JSONResponse({"status": "not ready", "reason": reason}, status_code=503)
        return JSONResponse({"status": "ready"})

    @app.post("/access")  # a browser names the page's origin in a POST alone
    async def access(request: Request) -> JSONResponse:
        """Whether this client could begin a conversation now, and in which dialect.

        For browsers, which hide why a WebSocket was refused.
        """
        if refusal := bridge.admission.refusal(bridge.access.check(request)):
            raise refusal
        return JSONResponse({"status": "ok", "dialect": settings.engine.dialect})

    @app.get("/metrics")
    async def tell_metrics(request: Request) -> Response:
        """What Prometheus is told; with a key, where clients need one."""
        bridge.access.check(request)
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/suggestions")
    def suggested() -> JSONResponse:  # it reads a file: in a thread
        """Sentences that a user may try, from the checkpoint's folder; none where it has none."""
        return JSONResponse(suggestions(settings))

    @app.get("/voices")
    async def voices() -> JSONResponse:
        """Names of the checkpoint's voices; none before the engine was there."""
        return JSONResponse(list(bridge.engine.voices))

    @app.post("/v1/realtime/client_secrets")
    async def client_secrets(request: Request) -> JSONResponse:
        """A short-lived key for a browser."""
        return JSONResponse(await make_client_secret(request, bridge))

    @app.websocket("/ws/pcm16")
    async def pcm16(socket: WebSocket) -> None:
        """A conversation; its options are the query's parameters. With `resume`: one goes on that was cut off."""
        if "resume" in socket.query_params:
            await _resume(socket, bridge)
        else:
            await _hold(socket, bridge, "pcm16", lambda place: Pcm16Conversation(socket, bridge, place))

    @app.websocket("/v1/realtime")
    async def realtime(socket: WebSocket) -> None:
        """A conversation in OpenAI's Realtime protocol."""
        if asked := {"call_id", "intent"} & socket.query_params.keys():
            message = f"{' and '.join(sorted(asked))} came: only conversations of their own are served here"
            await socket.send_denial_response(_refused(RefusedError(HTTPStatus.NOT_FOUND, "not_served", message)))
            return
        model = socket.query_params.get("model", "")
        await _hold(socket, bridge, "realtime", lambda place: RealtimeConnection(socket, bridge, place, model))

    @app.post("/v1/realtime/calls")
    async def call(request: Request) -> Response:
        """The same over WebRTC: an SDP offer, and the answer to it."""
        answer = await calls.begin(request)
        headers = {"Location": f"/v1/realtime/calls/{answer.call_id}"}
        return Response(answer.sdp, HTTPStatus.CREATED, headers, "application/sdp")

    @app.get("/v1/realtime/calls/{call_id}")
    async def about_call(request: Request, call_id: str) -> JSONResponse:
        """How a call is doing: what its latest tick took, which the protocol's events do not tell."""
        return JSONResponse(calls.get(request, call_id).about)

    @app.post("/v1/realtime/calls/{call_id}/hangup")
    async def hang_up(request: Request, call_id: str) -> Response:
        """Ends a call."""
        calls.get(request, call_id).hang_up()
        return Response()

    app.mount("/", StaticFiles(directory=PAGE, html=True), name="page")
    return app


def _refused(refusal: RefusedError) -> JSONResponse:
    """A refusal as an HTTP answer; to a WebSocket it comes instead of the upgrade."""
    metrics.REFUSED.labels(refusal.code).inc()
    logger.info("refused", extra={"about": {"code": refusal.code}})
    return JSONResponse(refusal.body, refusal.status, refusal.headers)


async def _hold(
    socket: WebSocket,
    bridge: Bridge,
    subprotocol: str,
    begin: Callable[[Reservation], Pcm16Conversation | RealtimeConnection],
) -> None:
    """Lets a client in, or says why not before the upgrade, and holds its conversation."""
    async with _refusals_told(socket):
        with bridge.admission.socket(bridge.access.check(socket)) as place:
            await _accept(socket, subprotocol)
            conversation = begin(place)
            bridge.open.add(conversation)
            try:
                await conversation.run()
            finally:
                bridge.open.discard(conversation)


async def _resume(socket: WebSocket, bridge: Bridge) -> None:
    """Gives a conversation that goes on another WebSocket."""
    async with _refusals_told(socket):
        with bridge.admission.socket(bridge.access.check(socket), resumes=True):
            await _accept(socket, "pcm16")
            received = socket.query_params.get("received", "")
            if not (received.isascii() and received.isdigit() and len(received) < MAX_DIGITS):
                raise ProtocolError("bad_option", f"received is {shown(received)}, expected a number of messages")
            await bridge.line(socket.query_params["resume"]).resume(socket, int(received))


async def _accept(socket: WebSocket, subprotocol: str) -> None:
    asked = socket.scope.get("subprotocols") or ()
    await socket.accept(subprotocol if subprotocol in asked else None)


@asynccontextmanager
async def _refusals_told(socket: WebSocket) -> AsyncIterator[None]:
    """Says why a client is not let in: before the upgrade, or after it by an error and the close."""
    try:
        yield
    except RefusedError as refusal:
        await socket.send_denial_response(_refused(refusal))
    except ProtocolError as error:
        await socket.send_json(error_event(error.code, error.message))
        await socket.close(CloseCode.POLICY_VIOLATION)
