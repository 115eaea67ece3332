"""Who may come in: API keys, the short-lived keys that their holders hand to browsers, and the origins of web pages."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection

from config.bridge import BridgeSettings

KEY_PROTOCOL = "openai-insecure-api-key."  # a browser cannot send a header with a WebSocket, but a subprotocol
SECRET_PREFIX = "ek_"
MAX_SECRETS, MAX_OWN_SECRETS = 10_000, 2_000  # alive at once, of all callers and of one


@dataclass(eq=False)
class RefusedError(Exception):
    """Why a client does not get in, as HTTP says it."""

    status: HTTPStatus
    code: str
    message: str
    retry_after_s: int | None = None
    param: str | None = None  # what of the request is wrong, by its name

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the answer."""
        return {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}

    @property
    def body(self) -> dict[str, Any]:
        """The answer, as OpenAI words its errors."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"type": kind, "code": self.code, "message": self.message, "param": self.param}}


@dataclass(frozen=True)
class Caller:
    """A client that may come in."""

    name: str  # of its key, which it does not tell, or its address
    session: Mapping[str, Any] = field(default_factory=dict)  # what its short-lived key was made for
    by_secret: bool = False


@dataclass(frozen=True)
class ClientSecret:
    """A short-lived key. The holder of an API key hands it to a browser."""

    value: str
    expires_at: int  # seconds since 1970, as its client is told
    until_s: float  # on the monotonic clock: the time of day may be set
    owner: str  # the name of the caller that it was made for
    session: Mapping[str, Any]


class Access:
    """Checks keys and origins; keeps the short-lived keys, in memory."""

    def __init__(self, settings: BridgeSettings):
        """Raises `SettingsError` where a key is needed and there is none."""
        self._settings = settings
        self._digests = [_digest(key) for key in settings.read_keys()]
        self._secrets: dict[bytes, ClientSecret] = {}

    def check(self, client: HTTPConnection) -> Caller:
        """The caller behind a request or WebSocket. Raises `RefusedError`."""
        self._check_origin(client)
        address = client.client.host if client.client else ""
        key = key_of(client)
        if key is None:
            if self._settings.needs_key:
                raise _unauthorized("no API key came, expected one as 'Authorization: Bearer KEY'")
            return Caller(address)
        digest = _digest(key)
        if secret := self._secret(digest):
            return Caller(secret.owner, secret.session, by_secret=True)
        known = False
        for other in self._digests:  # all of them, whichever fits: time tells nothing
            known |= hmac.compare_digest(digest, other)
        if known:
            return Caller(f"key {digest.hex()[:12]}")
        is_secret = key.startswith(SECRET_PREFIX)  # made for a session that is not known any more
        if self._settings.needs_key or is_secret:
            raise _unauthorized("the API key that came is not known here, or has expired")
        return Caller(address)  # stock clients always send one

    def make_secret(self, owner: Caller, lifetime_s: int, session: Mapping[str, Any]) -> ClientSecret:
        """A new short-lived key. Raises `RefusedError` where too many are alive."""
        if owner.by_secret:
            raise _unauthorized("a short-lived key came, expected an API key: only its holder makes others")
        now_s = time.monotonic()
        self._secrets = {digest: s for digest, s in self._secrets.items() if s.until_s > now_s}
        own = sum(secret.owner == owner.name for secret in self._secrets.values())
        if len(self._secrets) >= MAX_SECRETS or own >= MAX_OWN_SECRETS:
            message = f"{own} short-lived keys of this caller are alive, {len(self._secrets)} of all"
            raise RefusedError(HTTPStatus.TOO_MANY_REQUESTS, "too_many_secrets", message, 60)
        value = SECRET_PREFIX + secrets.token_urlsafe(32)
        secret = ClientSecret(value, int(time.time()) + lifetime_s, now_s + lifetime_s, owner.name, session)
        self._secrets[_digest(value)] = secret
        return secret

    def _secret(self, digest: bytes) -> ClientSecret | None:
        secret = self._secrets.get(digest)  # found by its hash: time tells nothing of the key
        return secret if secret and secret.until_s > time.monotonic() else None

    def _check_origin(self, client: HTTPConnection) -> None:
        """A web page of elsewhere must not use a browser to talk to a bridge that only this machine should reach."""
        origin = client.headers.get("origin")
        if origin is None or {"*", origin.lower()} & set(self._settings.origins):
            return
        host = client.headers.get("host", "")
        is_own = _netloc(origin) == host.lower() != ""
        if is_own and (self._settings.needs_key or _is_literal(host)):
            return
        raise RefusedError(
            HTTPStatus.FORBIDDEN,
            "origin_not_allowed",
            f"the web page {origin[:100]!r} may not talk to this server (bridge.allowed_origins)",
        )


def key_of(client: HTTPConnection) -> str | None:
    """The key that a client shows, in a header or as a subprotocol; none where it shows none."""
    scheme, _, key = client.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key.strip():
        return key.strip()
    for protocol in client.scope.get("subprotocols") or ():
        if protocol.startswith(KEY_PROTOCOL):
            return str(protocol.removeprefix(KEY_PROTOCOL))
    return None


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()


def _unauthorized(message: str) -> RefusedError:
    return RefusedError(HTTPStatus.UNAUTHORIZED, "invalid_api_key", message)


def _netloc(origin: str) -> str:
    """Host and port of an Origin header in small letters; "" where it is no address."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _is_literal(host: str) -> bool:
    """Whether a Host header names this machine or an address: a name could be anybody's that points here."""
    name = ""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return bool(ipaddress.ip_address(name))
    except ValueError:
        return name == "localhost"
