"""The section [bridge]: addresses, access of clients, and the limits of one client."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from config.loader import SettingsError, expect, listed

MIN_KEY = 16  # minimum number of characters of an API key: a shorter one could be guessed
ICE_SERVER = re.compile(
    r"(?P<scheme>stun|turns?):((?P<user>[^:@]+):(?P<password>[^@]+)@)?(?P<host>[\w.-]+(:\d+)?(\?transport=(udp|tcp))?)"
)


class IceServer(NamedTuple):
    """A STUN or TURN server."""

    url: str
    user: str | None
    password: str | None


@dataclass(frozen=True)
class BridgeSettings:
    """The bridge's address, the keys of its clients, and its limits."""

    host: str
    port: int
    api_keys: str = field(repr=False)
    api_keys_file: str = field(repr=False)
    require_api_key: str
    allowed_origins: str
    tls_certificate: str
    tls_key: str = field(repr=False)
    ice_servers: str = field(repr=False)
    sockets: int
    conversations_per_client: int
    conversation_s: float
    max_frame_bytes: int
    text_per_second: int
    ticks_in_flight: int
    response_timeout_s: float
    read_timeout_s: float
    max_lag_ms: int
    resume_s: float
    move_within_s: float
    drain_s: float
    record_folder: str
    traces_url: str = field(repr=False)
    log_level: str

    def __post_init__(self) -> None:
        expect(0 < self.port < 65536, "bridge.port", self.port, "a port, 1 to 65535")
        for name in (
            "sockets",
            "conversation_s",
            "max_frame_bytes",
            "text_per_second",
            "ticks_in_flight",
            "response_timeout_s",
            "read_timeout_s",
        ):
            expect(getattr(self, name) > 0, f"bridge.{name}", getattr(self, name), "a number above 0")
        for name in ("conversations_per_client", "max_lag_ms", "resume_s", "move_within_s", "drain_s"):
            expect(getattr(self, name) >= 0, f"bridge.{name}", getattr(self, name), "a number from 0")
        known = ("auto", "always", "never")
        expect(self.require_api_key in known, "bridge.require_api_key", self.require_api_key, "auto, always or never")
        levels = ("debug", "info", "warning", "error")
        expect(self.log_level in levels, "bridge.log_level", self.log_level, "one of " + ", ".join(levels))
        is_url = not self.traces_url or self.traces_url.startswith(("http://", "https://"))
        expect(is_url, "bridge.traces_url", self.traces_url, "a URL such as http://localhost:4318/v1/traces")
        for origin in self.origins:
            is_origin = origin == "*" or origin.startswith(("http://", "https://"))
            expect(is_origin, "bridge.allowed_origins", origin, "origins such as https://shop.example, or *")
        for server in listed(self.ice_servers):
            expected = "stun:HOST:PORT, turn:USER:PASSWORD@HOST:PORT, or turns:"
            expect(bool(ICE_SERVER.fullmatch(server)), "bridge.ice_servers", server, expected)
        both = bool(self.tls_certificate) == bool(self.tls_key)
        expect(both, "bridge.tls_certificate", self.tls_certificate, "a file, with bridge.tls_key, or neither")

    @property
    def origins(self) -> tuple[str, ...]:
        """Origins of web pages, other than the bridge's own page, that may connect to the bridge."""
        return tuple(origin.rstrip("/").lower() for origin in listed(self.allowed_origins))

    @property
    def ice(self) -> tuple[IceServer, ...]:
        """The STUN and TURN servers of WebRTC calls."""
        found = [match for server in listed(self.ice_servers) if (match := ICE_SERVER.fullmatch(server))]
        return tuple(IceServer(f"{m['scheme']}:{m['host']}", m["user"], m["password"]) for m in found)

    @property
    def url(self) -> str:
        """Base URL of the bridge's WebSockets, for a client with the same settings."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'wss' if self.tls_certificate else 'ws'}://{host}:{self.port}"

    @property
    def is_local(self) -> bool:
        """True if only this machine can reach the bridge."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def needs_key(self) -> bool:
        """True if every client has to send an API key."""
        if self.require_api_key == "auto":
            return not self.is_local or bool(self.api_keys or self.api_keys_file)
        return self.require_api_key == "always"

    def read_keys(self) -> tuple[str, ...]:
        """Return the keys of the setting and of the file; raise `SettingsError`, which quotes no key."""
        keys = listed(self.api_keys)
        if self.api_keys_file:
            try:
                lines = Path(self.api_keys_file).read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                problem = error.strerror if isinstance(error, OSError) else "expected UTF-8"
                raise SettingsError(f"bridge.api_keys_file: the file cannot be read: {problem}") from None
            keys += tuple(line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#"))
        if any(len(key) < MIN_KEY or not (key.isascii() and key.isprintable()) or " " in key for key in keys):
            raise SettingsError(
                f"API key: expected at least {MIN_KEY} letters and digits, got a shorter key or other characters"
            )
        if self.needs_key and not keys:
            raise SettingsError(
                f"bridge.host is {self.host!r}, which other machines can reach, without an API key: expected keys in "
                "bridge.api_keys or bridge.api_keys_file, or bridge.require_api_key = 'never' to admit every client"
            )
        return keys
