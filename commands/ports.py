"""The ports that serving needs, and the check that they are free."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from dataclasses import dataclass

from config import Settings


@dataclass(frozen=True)
class NeededPort:
    """A port to listen on, and the setting that holds its number."""

    setting: str
    host: str
    number: int

    @property
    def variable(self) -> str:
        """Environment variable of the setting."""
        return "SCA_" + self.setting.replace(".", "_").upper()

    def problem(self) -> str | None:
        """Return why the port cannot be listened on; None if it can."""
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self.host, self.number))
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    return "is in use"
                return f"cannot be listened on: {error.strerror}"
        return None


def needed_ports(settings: Settings) -> Iterator[NeededPort]:
    """Yield the port of the bridge and the ports of Triton; its HTTP port only if one is set."""
    triton, bridge = settings.triton, settings.bridge
    yield NeededPort("bridge.port", bridge.host, bridge.port)
    if triton.http_port:
        yield NeededPort("triton.http_port", triton.host, triton.http_port)
    yield NeededPort("triton.grpc_port", triton.host, triton.grpc_port)
    yield NeededPort("triton.metrics_port", triton.host, triton.metrics_port)
