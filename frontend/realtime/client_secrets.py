"""`POST /v1/realtime/client_secrets`: short-lived keys, each made for a session."""

from __future__ import annotations

import time
from typing import Any

from fastapi import Request

from config.loader import shown
from frontend.body import read_body
from frontend.bridge import Bridge
from frontend.ephemeral_keys import EphemeralKeys
from frontend.realtime.events import Event, RealtimeError, new_id, parse_object
from frontend.realtime.session import Session

LIFETIME_S = 600
MIN_S, MAX_S = 10, 7200
ANCHOR = "created_at"  # beginning of a key's lifetime
KEPT = ("type", "model", "instructions", "output_modalities", "max_output_tokens", "audio")
"""The fields from which `Session.update` makes the same session; other fields of a request are not kept for hours."""


async def make_client_secret(request: Request, bridge: Bridge, keys: EphemeralKeys) -> Event:
    """Return the response: the key, its end, and its session. Raises `RefusedError` and `RealtimeError`."""
    caller = bridge.access.check(request)
    found = parse_object(await read_body(request) or b"{}", "the body")
    lifetime_s = _lifetime_s(found.get("expires_after"))
    requested = {} if found.get("session") is None else found["session"]
    if not isinstance(requested, dict):
        raise RealtimeError(f"session: expected an object, got {shown(requested)}", param="session")
    expires_at = int(time.time() + bridge.settings.bridge.conversation_s)
    model = requested.get("model") if isinstance(requested.get("model"), str) else ""
    session = Session(new_id("sess"), bridge.settings, bridge.engine.voices, str(model)[:100], expires_at)
    session.update(requested)
    kept = {name: session.about[name] for name in KEPT if name != "model" or "model" in requested}
    key = keys.make(caller, lifetime_s, kept)
    return {"value": key.value, "expires_at": key.expires_at, "session": session.about}


def _lifetime_s(expires_after: Any) -> int:
    if expires_after is None:
        return LIFETIME_S
    found = expires_after if isinstance(expires_after, dict) else {"seconds": None}
    if (anchor := found.get("anchor", ANCHOR)) != ANCHOR:
        raise RealtimeError(f"anchor: expected {ANCHOR}, got {shown(anchor)}", param="expires_after.anchor")
    seconds = found.get("seconds", LIFETIME_S)
    if type(seconds) is not int or not MIN_S <= seconds <= MAX_S:
        message = f"expires_after: expected {MIN_S} to {MAX_S} seconds, got {shown(expires_after)}"
        raise RealtimeError(message, param="expires_after")
    return seconds
