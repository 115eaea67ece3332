"""The bridge: FastAPI on one port, a WebSocket a conversation, the page, and two probes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, WebSocket
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles

from config import Settings
from frontend.conversation import Conversation
from frontend.protocol import SAMPLE_BYTES, CloseCode, ProtocolError, check_options, error_event
from frontend.realtime.connection import RealtimeConnection
from frontend.suggestions import suggestions
from frontend.triton import EngineFacts, TickError, TickIn, TritonLink, new_sequence_id

logger = logging.getLogger(__name__)
PAGE = Path(__file__).parent / "static"
WARM_UP_TICKS = 3
RETRY_S = 1.0


class AdmissionControl:
    """Counts the conversations, and refuses one too many: Triton would let it wait in silence."""

    def __init__(self) -> None:
        self.slots = 0  # 0: not known, then the engine alone refuses
        self.conversations = 0

    @property
    def is_full(self) -> bool:
        """Whether every slot holds a conversation."""
        return 0 < self.slots <= self.conversations


class Bridge:
    """What the routes share."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.admission = AdmissionControl()
        self.engine = EngineFacts()
        self.not_ready: str | None = "Triton has not answered yet"

    async def connect(self) -> None:
        """Opens the gRPC channel. Must run on the event loop that will use it."""
        self.link = TritonLink(self.settings)

    async def warm_up(self) -> None:
        """Waits for Triton, then talks to it once, so that the first tick of the first client is as fast as any."""
        while self.not_ready:
            if await self.link.is_ready():
                try:
                    self.engine = await self.link.engine()
                    self.admission.slots = self.engine.slots
                    async for answer in self.link.converse(new_sequence_id(), self._silence()):
                        if isinstance(answer, TickError):
                            raise answer
                    self.not_ready = None
                except Exception as error:  # tried again, and /readyz tells
                    self.not_ready = f"the warm-up failed: {error}"
                    logger.exception("the warm-up failed")
            if self.not_ready:
                await asyncio.sleep(RETRY_S)

    async def _silence(self) -> AsyncIterator[TickIn]:
        pcm = bytes(self.settings.audio.input_samples * SAMPLE_BYTES)
        for tick in range(WARM_UP_TICKS):
            yield TickIn(pcm, start=tick == 0, end=tick == WARM_UP_TICKS - 1)


def create_app(settings: Settings) -> FastAPI:
    """The bridge's application; it comes up without Triton and is ready once Triton is."""
    bridge = Bridge(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await bridge.connect()
        warming = asyncio.create_task(bridge.warm_up())
        yield
        warming.cancel()
        await bridge.link.close()

    app = FastAPI(title="sca bridge", lifespan=lifespan)

    @app.get("/healthz")
    async def healthz() -> JSONResponse:
        """The bridge itself runs."""
        return JSONResponse({"status": "ok", "conversations": bridge.admission.conversations})

    @app.get("/readyz")
    async def readyz() -> JSONResponse:
        """A conversation could begin now."""
        reason = bridge.not_ready
        if reason is None and not await bridge.link.is_ready():
            reason = f"Triton at {bridge.link.url} is not ready"
        if reason is not None:
            return JSONResponse({"status": "not ready", "reason": reason}, status_code=503)
        return JSONResponse({"status": "ready"})

    @app.get("/suggestions")
    def suggested() -> JSONResponse:  # it reads a file: in a thread
        """Sentences that a user may try, from the checkpoint's folder; none where it has none."""
        return JSONResponse(suggestions(settings))

    @app.websocket("/ws/pcm16")
    async def pcm16(socket: WebSocket) -> None:
        """A conversation; its options are the query's parameters."""
        await socket.accept()
        if bridge.admission.is_full:
            message = f"all {bridge.admission.slots} slots hold a conversation (engine.slots), try again later"
            await socket.send_json(error_event("full", message))
            await socket.close(CloseCode.TRY_AGAIN_LATER)
            return
        try:
            options = check_options(socket.query_params)
        except ProtocolError as error:
            await socket.send_json(error_event(error.code, error.message))
            await socket.close(CloseCode.POLICY_VIOLATION)
            return
        bridge.admission.conversations += 1
        try:
            await Conversation(socket, bridge.link, settings, options).run()
        finally:
            bridge.admission.conversations -= 1

    @app.websocket("/v1/realtime")
    async def realtime(socket: WebSocket) -> None:
        """A conversation in OpenAI's Realtime protocol."""
        wanted = socket.scope.get("subprotocols") or []
        await socket.accept("realtime" if "realtime" in wanted else None)
        model = socket.query_params.get("model", "")[:100]
        await RealtimeConnection(socket, bridge.link, settings, bridge.engine.voices, model).run()

    app.mount("/", StaticFiles(directory=PAGE, html=True), name="page")
    return app
