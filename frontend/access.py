"""Access of clients: API keys, and the origins of web pages."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection

from config.bridge import BridgeSettings
from contract.errors import ErrorCode

KEY_PROTOCOL = "openai-insecure-api-key."  # a browser can send a subprotocol with a WebSocket, but no header


@dataclass(eq=False)
class RefusedError(Exception):
    """A refusal of a client or of a request, as an HTTP response."""

    status: HTTPStatus
    code: ErrorCode
    message: str
    retry_after_s: int | None = None
    param: str | None = None  # name of the wrong part of the request

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the response."""
        return {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}

    @property
    def body(self) -> dict[str, Any]:
        """The body of the response, in the form of OpenAI's errors."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"type": kind, "code": self.code.value, "message": self.message, "param": self.param}}


@dataclass(frozen=True)
class Caller:
    """A client with access."""

    name: str  # a part of the digest of its key, or its address
    session: Mapping[str, Any] = field(default_factory=dict)  # session for which its short-lived key was made
    has_short_lived_key: bool = False


class Access:
    """Checks keys and origins."""

    def __init__(self, settings: BridgeSettings):
        """Raise `SettingsError` if a key is required and none is configured."""
        self._settings = settings
        self._digests = [digest_of(key) for key in settings.read_keys()]
        self.resolvers: list[Callable[[str], Caller | None]] = []

    def check(self, client: HTTPConnection) -> Caller:
        """Return the caller of a request or WebSocket. Raises `RefusedError`."""
        self._check_origin(client)
        address = client.client.host if client.client else ""
        key = key_of(client)
        if key is None:
            if self._settings.needs_key:
                raise unauthorized("expected an API key as 'Authorization: Bearer KEY', got none")
            return Caller(address)
        for resolve in self.resolvers:
            if caller := resolve(key):
                return caller
        digest, is_known = digest_of(key), False
        for other in self._digests:  # compare every key: constant time
            is_known |= hmac.compare_digest(digest, other)
        if is_known:
            return Caller(f"key {digest.hex()[:12]}")
        if self._settings.needs_key:
            raise unauthorized("expected a known API key, got one that is unknown or has expired")
        return Caller(address)  # stock clients always send a key

    def _check_origin(self, client: HTTPConnection) -> None:
        """Raise `RefusedError` for a web page of another site: it could use the browser of a user of this machine."""
        origin = client.headers.get("origin")
        if origin is None or {"*", origin.lower()} & set(self._settings.origins):
            return
        host = client.headers.get("host", "")
        is_own = _netloc(origin) == host.lower() != ""
        if is_own and (self._settings.needs_key or _is_literal(host)):
            return
        message = f"the web page {origin[:100]!r} has no access to this server (bridge.allowed_origins)"
        raise RefusedError(HTTPStatus.FORBIDDEN, ErrorCode.ORIGIN_NOT_ALLOWED, message)


def key_of(client: HTTPConnection) -> str | None:
    """Return the key that a client sends, in a header or as a subprotocol."""
    scheme, _, key = client.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key.strip():
        return key.strip()
    for protocol in client.scope.get("subprotocols") or ():
        if protocol.startswith(KEY_PROTOCOL):
            return str(protocol.removeprefix(KEY_PROTOCOL))
    return None


def digest_of(key: str) -> bytes:
    """Return the SHA-256 of a key."""
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()


def unauthorized(message: str) -> RefusedError:
    """Return the refusal of a key."""
    return RefusedError(HTTPStatus.UNAUTHORIZED, ErrorCode.INVALID_API_KEY, message)


def _netloc(origin: str) -> str:
    """Return host and port of an Origin header in lower case; "" if it is not an address."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _is_literal(host: str) -> bool:
    """Return whether a Host header is localhost or an IP address: any site can point another name to this machine."""
    name = ""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return bool(ipaddress.ip_address(name))
    except ValueError:
        return name == "localhost"
