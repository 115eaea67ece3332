"""The memory of a server's processes on this machine, found by the ports that they listen on."""

from __future__ import annotations

import psutil

from config import Settings


def server_memory(settings: Settings) -> dict[str, int]:
    """Bytes of the bridge, of Triton and of its Python stages; empty where they run on another machine."""
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
    """The model of a Python backend's process, which its command names."""
    for word in command:
        for model in ("thinker_talker", "mel_frontend", "code2wav"):
            if model in word:
                return model
    return command[0].rsplit("/", 1)[-1] if command else "a process that ends"
