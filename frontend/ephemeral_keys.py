"""Short-lived keys, which the holder of an API key passes to browsers. Each is made for a session, in memory.

A signed token would be valid at every replica, but could not contain the session: instructions of 20,000 characters
exceed the 8,000 bytes of a header.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from contract.errors import ErrorCode
from frontend.access import Caller, RefusedError, digest_of, unauthorized

PREFIX = "ek_"
MAX_KEYS, MAX_OWN_KEYS = 10_000, 2_000  # keys alive at once, of all callers and of one caller


@dataclass(frozen=True)
class EphemeralKey:
    """A short-lived key."""

    value: str
    expires_at: int  # Unix time in seconds, for the client
    until_s: float  # end on the monotonic clock: the time of day may be set
    owner: str  # name of the caller that requested the key
    session: Mapping[str, Any]


class EphemeralKeys:
    """The keys that are alive; `resolve` is a resolver of `Access`."""

    def __init__(self) -> None:
        self._keys: dict[bytes, EphemeralKey] = {}  # keys by digest: the time of a look-up reveals nothing of a key

    def make(self, owner: Caller, lifetime_s: int, session: Mapping[str, Any]) -> EphemeralKey:
        """Return a new key. Raises `RefusedError` if too many are alive."""
        if owner.has_short_lived_key:
            raise unauthorized("expected an API key, got a short-lived key: only the holder of an API key makes others")
        now_s = time.monotonic()
        self._keys = {digest: key for digest, key in self._keys.items() if key.until_s > now_s}
        own = sum(key.owner == owner.name for key in self._keys.values())
        if len(self._keys) >= MAX_KEYS or own >= MAX_OWN_KEYS:
            message = f"{own} short-lived keys of this caller are alive, {len(self._keys)} of all callers"
            raise RefusedError(HTTPStatus.TOO_MANY_REQUESTS, ErrorCode.TOO_MANY_SECRETS, message, 60)
        value = PREFIX + secrets.token_urlsafe(32)
        key = EphemeralKey(value, int(time.time()) + lifetime_s, now_s + lifetime_s, owner.name, session)
        self._keys[digest_of(value)] = key
        return key

    def resolve(self, key: str) -> Caller | None:
        """Return the caller of a short-lived key; None for any other key. Raises `RefusedError` for an expired one."""
        if not key.startswith(PREFIX):
            return None
        found = self._keys.get(digest_of(key))
        if found is None or found.until_s <= time.monotonic():
            raise unauthorized("expected a known API key, got a short-lived one that is unknown or has expired")
        return Caller(found.owner, found.session, has_short_lived_key=True)
