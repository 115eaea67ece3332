"""Memory of a server's processes on this machine, which are found by their listening ports."""

from __future__ import annotations

import psutil

from config import Settings


def server_memory(settings: Settings) -> dict[str, int]:
    """Return the resident bytes of the bridge, Triton and its Python stages; empty if they run on another machine."""
    roles = {settings.bridge.port: "bridge", settings.triton.grpc_port: "Triton"}
    memory: dict[str, int] = {}
    for connection in psutil.net_connections("tcp"):
        role = roles.get(connection.laddr.port) if connection.status == psutil.CONN_LISTEN else None
        if role is None or connection.pid is None:
            continue
        process = psutil.Process(connection.pid)
        memory[role] = process.memory_info().rss
        if role == "Triton":
            for stage in process.children(recursive=True):
                name = f"{role}: {stage_name(stage.cmdline())}"
                memory[name] = memory.get(name, 0) + stage.memory_info().rss
    return memory


def stage_name(command: list[str]) -> str:
    """Return the model that a Python backend's command line names."""
    for word in command:
        for model in ("thinker_talker", "mel_frontend", "code2wav"):
            if model in word:
                return model
    return command[0].rsplit("/", 1)[-1] if command else "exited process"
