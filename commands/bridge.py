"""./sca bridge: only the bridge, next to a running Triton."""

from __future__ import annotations

import argparse
import asyncio
import signal
from concurrent.futures import Future
from pathlib import Path
from types import FrameType

import uvicorn

from commands.console import UserError, console, load_settings
from commands.ports import needed_ports
from config import Settings, SettingsError
from config.loader import shown_of
from frontend.app import create_app
from frontend.bridge import Bridge
from frontend.connections import BoundedHttp

GRACE_S = 5  # time in which conversations close after the bridge has ended them
MAX_FRAMES_READ = 4  # a message above this multiple of bridge.max_frame_bytes closes the WebSocket
MIN_BYTES_READ = 16 * 2**20  # lower bound of that limit; shorter messages that are too long get an error


def add_arguments(_: argparse.ArgumentParser) -> None:
    """Add nothing: the command has no arguments."""


def run(_: argparse.Namespace) -> int:
    """Serve until Ctrl-C or SIGTERM."""
    settings = load_settings()
    port = next(needed_ports(settings))
    if problem := port.problem():
        raise UserError(f"port {port.number} on {port.host} {problem}; choose another {port.setting}")
    bridge = bridge_server(settings)
    console.print(f"the bridge to Triton at {settings.triton.host}:{settings.triton.grpc_port}: {address(settings)}")
    run_until_stopped(bridge)
    return 0


class BridgeServer(uvicorn.Server):
    """A server that ends at once at Ctrl-C; at SIGTERM it first drains its conversations."""

    def __init__(self, config: uvicorn.Config, bridge: Bridge):
        super().__init__(config)
        self.bridge = bridge
        self._draining: Future[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain at the first SIGTERM, else exit; uvicorn calls this on the main thread."""
        if sig != signal.SIGTERM or self._draining or not self.started:
            super().handle_exit(sig, frame)
            return
        self._draining = asyncio.run_coroutine_threadsafe(self._drain(), asyncio.get_running_loop())

    async def _drain(self) -> None:
        await self.bridge.drain()
        self.should_exit = True


def bridge_server(settings: Settings) -> BridgeServer:
    """Return the bridge, not yet running; raise `UserError` for settings that it cannot run with."""
    bridge = settings.bridge
    try:
        app = create_app(settings)
    except SettingsError as error:
        raise UserError(str(error)) from error
    for name in ("tls_certificate", "tls_key"):
        if (path := getattr(bridge, name)) and not Path(path).is_file():
            raise UserError(f"bridge.{name}: expected a PEM file, got {shown_of(f'bridge.{name}', path)}")
    config = uvicorn.Config(
        app,
        host=bridge.host,
        port=bridge.port,
        http=BoundedHttp,
        ws="websockets-sansio",
        ws_max_size=max(MIN_BYTES_READ, MAX_FRAMES_READ * bridge.max_frame_bytes),
        ws_per_message_deflate=False,  # PCM16 hardly compresses, and a small message must not expand to a large one
        ws_ping_timeout=None,  # a pong queues behind audio that arrived faster than it is played
        ssl_certfile=bridge.tls_certificate or None,
        ssl_keyfile=bridge.tls_key or None,
        log_level="warning",
        timeout_graceful_shutdown=GRACE_S,
    )
    return BridgeServer(config, app.state.bridge)


def run_until_stopped(server: uvicorn.Server) -> None:
    """Run the server in this thread until a signal, or until `should_exit` is set."""
    try:
        asyncio.run(server.serve())
    except KeyboardInterrupt:
        return  # uvicorn has already shut down and raises the signal again


def address(settings: Settings) -> str:
    """Return the address of the page for a browser on this machine."""
    host = settings.bridge.host
    shown = "localhost" if host in ("127.0.0.1", "0.0.0.0", "::") else host
    scheme = "https" if settings.bridge.tls_certificate else "http"
    return f"{scheme}://{shown}:{settings.bridge.port}"
