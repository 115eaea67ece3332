"""./sca bridge: the bridge alone, next to a Triton that somebody else runs."""

from __future__ import annotations

import argparse
import asyncio
import signal
from concurrent.futures import Future
from pathlib import Path
from types import FrameType

import uvicorn

from commands.console import UserError, console, load_settings
from commands.ports import wanted_ports
from config import Settings, SettingsError
from frontend.app import create_app
from frontend.bridge import Bridge
from frontend.connections import BoundedHttp

GRACE_S = 5  # how long conversations that were ended may take to close
ANSWERED_FRAMES = (
    4  # messages up to so many times bridge.max_frame_bytes get an error in words; larger ones end the call
)
MIN_ANSWERED_BYTES = 16 * 2**20


def add_arguments(_: argparse.ArgumentParser) -> None:
    """None of its own."""


def run(_: argparse.Namespace) -> int:
    """Serves until Ctrl-C or SIGTERM."""
    settings = load_settings()
    wanted = next(wanted_ports(settings))
    if problem := wanted.problem():
        raise UserError(f"port {wanted.port} on {wanted.host} {problem}; choose another {wanted.setting}")
    bridge = bridge_server(settings)
    console.print(f"the bridge to Triton at {settings.triton.host}:{settings.triton.grpc_port}: {address(settings)}")
    run_until_stopped(bridge)
    return 0


class BridgeServer(uvicorn.Server):
    """Ends at once at Ctrl-C; at SIGTERM its conversations are told, and given time to end."""

    def __init__(self, config: uvicorn.Config, bridge: Bridge):
        super().__init__(config)
        self.bridge = bridge
        self._draining: Future[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal has come; uvicorn calls this, on the main thread."""
        if sig != signal.SIGTERM or self._draining or not self.started:
            super().handle_exit(sig, frame)
            return
        self._draining = asyncio.run_coroutine_threadsafe(self._drain(), asyncio.get_running_loop())

    async def _drain(self) -> None:
        await self.bridge.drain()
        self.should_exit = True


def bridge_server(settings: Settings) -> BridgeServer:
    """The bridge, not running yet. Raises `UserError`."""
    bridge = settings.bridge
    try:
        app = create_app(settings)
    except SettingsError as error:
        raise UserError(str(error)) from error
    for name in ("tls_certificate", "tls_key"):
        if (path := getattr(bridge, name)) and not Path(path).is_file():
            raise UserError(f"bridge.{name} is {path!r}, expected a PEM file")
    config = uvicorn.Config(
        app,
        host=bridge.host,
        port=bridge.port,
        http=BoundedHttp,
        ws="websockets-sansio",
        ws_max_size=max(MIN_ANSWERED_BYTES, ANSWERED_FRAMES * bridge.max_frame_bytes),
        ws_per_message_deflate=False,  # sound does not shrink, and a small frame must not become a large one
        ws_ping_timeout=None,  # a pong waits behind sound that came faster than it is heard
        ssl_certfile=bridge.tls_certificate or None,
        ssl_keyfile=bridge.tls_key or None,
        log_level="warning",
        timeout_graceful_shutdown=GRACE_S,
    )
    return BridgeServer(config, app.state.bridge)


def run_until_stopped(server: uvicorn.Server) -> None:
    """Runs in this thread until a signal, or until `should_exit` is set."""
    try:
        asyncio.run(server.serve())
    except KeyboardInterrupt:
        return  # uvicorn has already ended in good order and raises the signal once more


def address(settings: Settings) -> str:
    """What a person types into a browser on this machine."""
    host = settings.bridge.host
    shown = "localhost" if host in ("127.0.0.1", "0.0.0.0", "::") else host
    scheme = "https" if settings.bridge.tls_certificate else "http"
    return f"{scheme}://{shown}:{settings.bridge.port}"
