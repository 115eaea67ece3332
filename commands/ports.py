"""The ports that serving needs, and whether they are free."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from dataclasses import dataclass

from config import Settings


@dataclass(frozen=True)
class WantedPort:
    """A port and the setting that names it."""

    setting: str
    host: str
    port: int

    @property
    def variable(self) -> str:
        """The setting as an environment variable."""
        return "SCA_" + self.setting.replace(".", "_").upper()

    def problem(self) -> str | None:
        """Why nothing could listen there, in words; None when something could."""
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self.host, self.port))
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    return "is in use"
                return f"cannot be listened on: {error.strerror}"
        return None


def wanted_ports(settings: Settings) -> Iterator[WantedPort]:
    """The bridge's port and Triton's, HTTP's only where it is asked for."""
    triton, bridge = settings.triton, settings.bridge
    yield WantedPort("bridge.port", bridge.host, bridge.port)
    if triton.http_port:
        yield WantedPort("triton.http_port", triton.host, triton.http_port)
    yield WantedPort("triton.grpc_port", triton.host, triton.grpc_port)
    yield WantedPort("triton.metrics_port", triton.host, triton.metrics_port)
