"""The bridge's application: FastAPI on one port, with a WebSocket for each conversation, probes and metrics."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.middleware.cors import CORSMiddleware

from config import Settings
from frontend.access import RefusedError
from frontend.bridge import Bridge
from frontend.handshake import refusal_response
from frontend.headers import SecurityHeaders
from frontend.log import log_to_stderr
from frontend.pcm16.routes import add_routes
from frontend.plugins import load_plugins


def create_app(settings: Settings) -> FastAPI:
    """Return the application; it starts without Triton and is ready once Triton is. Raises `SettingsError`."""
    plugins = load_plugins(settings)
    bridge = Bridge(settings, plugins)
    log_to_stderr(settings.bridge.log_level)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        watching = asyncio.create_task(bridge.engine.watch())
        yield
        watching.cancel()
        await bridge.close()

    app = FastAPI(title="sca bridge", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.bridge = bridge
    app.add_middleware(SecurityHeaders)
    if settings.bridge.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.bridge.origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],  # clients send their libraries' own headers
            expose_headers=["Location"],
        )

    @app.exception_handler(RefusedError)
    async def refused(_: Request, refusal: RefusedError) -> JSONResponse:
        return refusal_response(refusal)

    _add_probes(app, bridge)
    for add in (add_routes, *plugins.routes):
        add(app, bridge)
    return app


def _add_probes(app: FastAPI, bridge: Bridge) -> None:
    @app.get("/healthz")
    async def healthz() -> JSONResponse:
        """Report that the bridge runs."""
        admission = bridge.admission
        return JSONResponse({"status": "ok", "conversations": admission.conversations, "sockets": admission.sockets})

    @app.get("/healthz/engine")
    async def engine_health() -> JSONResponse:
        """Report whether the engine answers: Triton reports itself alive while one of its stages is dead."""
        if problem := bridge.engine.problem:
            return JSONResponse({"status": "dead", "reason": problem}, status_code=503)
        return JSONResponse({"status": "ok"})

    @app.get("/readyz")
    async def readyz() -> JSONResponse:
        """Report whether a conversation can begin now."""
        if reason := await bridge.not_ready():
            return JSONResponse({"status": "not ready", "reason": reason}, status_code=503)
        return JSONResponse({"status": "ready"})

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        """Return the metrics for Prometheus; requires a key if clients need one."""
        bridge.access.check(request)
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)
