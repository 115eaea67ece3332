"""./sca bridge: the bridge alone, next to a Triton that somebody else runs."""

from __future__ import annotations

import argparse
import asyncio

import uvicorn

from commands.console import UserError, console, load_settings
from commands.ports import wanted_ports
from config import Settings
from frontend.app import create_app

GRACE_S = 5  # how long open conversations may take to end
ANSWERED_FRAMES = (
    4  # messages up to so many times bridge.max_frame_bytes get an error in words; larger ones end the call
)
LEAST_ANSWERED_BYTES = 16 * 2**20


def add_arguments(_: argparse.ArgumentParser) -> None:
    """None of its own."""


def run(_: argparse.Namespace) -> int:
    """Serves until Ctrl-C or SIGTERM."""
    settings = load_settings()
    wanted = next(wanted_ports(settings))
    if problem := wanted.problem():
        raise UserError(f"port {wanted.port} on {wanted.host} {problem}; choose another {wanted.setting}")
    console.print(f"the bridge to Triton at {settings.triton.host}:{settings.triton.grpc_port}: {address(settings)}")
    run_until_stopped(bridge_server(settings))
    return 0


def bridge_server(settings: Settings) -> uvicorn.Server:
    """The bridge, not running yet."""
    bridge = settings.bridge
    return uvicorn.Server(
        uvicorn.Config(
            create_app(settings),
            host=bridge.host,
            port=bridge.port,
            ws="websockets-sansio",
            ws_max_size=max(LEAST_ANSWERED_BYTES, ANSWERED_FRAMES * bridge.max_frame_bytes),
            log_level="warning",
            timeout_graceful_shutdown=GRACE_S,
        )
    )


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
    return f"http://{shown}:{settings.bridge.port}"
