"""`POST /v1/realtime/client_secrets`: short-lived keys, each made for a session."""

from __future__ import annotations

import time
from typing import Any

from fastapi import Request

from config.loader import shown
from frontend.body import bad_request, read_body
from frontend.bridge import Bridge
from frontend.realtime.events import Event, RealtimeError, new_id, parse_object
from frontend.realtime.session import Session

LIFETIME_S = 600
MIN_S, MAX_S = 10, 7200
ANCHOR = "created_at"  # from when a key's seconds count
KEPT = ("type", "model", "instructions", "output_modalities", "max_output_tokens", "audio")
"""Of a session, what `Session.update` makes the same one of: whatever else was asked is not kept for hours."""


async def make_client_secret(request: Request, bridge: Bridge) -> Event:
    """The answer: the key, when it expires, and its session. Raises `RefusedError`."""
    caller = bridge.access.check(request)
    try:
        wanted = parse_object(await read_body(request) or b"{}", "the body")
        lifetime_s = _lifetime_s(wanted.get("expires_after"))
        asked = {} if wanted.get("session") is None else wanted["session"]
        if not isinstance(asked, dict):
            raise RealtimeError(f"session is {shown(asked)}, expected an object", param="session")
        expires_at = int(time.time() + bridge.settings.bridge.conversation_s)
        model = asked.get("model") if isinstance(asked.get("model"), str) else ""
        session = Session(new_id("sess"), bridge.settings, bridge.engine.voices, str(model)[:100], expires_at)
        session.update(asked)
    except RealtimeError as error:
        raise bad_request(error) from error
    kept = {name: session.about[name] for name in KEPT if name != "model" or "model" in asked}
    secret = bridge.access.make_secret(caller, lifetime_s, kept)
    return {"value": secret.value, "expires_at": secret.expires_at, "session": session.about}


def _lifetime_s(expires_after: Any) -> int:
    if expires_after is None:
        return LIFETIME_S
    asked = expires_after if isinstance(expires_after, dict) else {"seconds": None}
    if (anchor := asked.get("anchor", ANCHOR)) != ANCHOR:
        raise RealtimeError(f"anchor is {shown(anchor)}, expected {ANCHOR}", param="expires_after.anchor")
    seconds = asked.get("seconds", LIFETIME_S)
    if type(seconds) is not int or not MIN_S <= seconds <= MAX_S:
        raise RealtimeError(
            f"expires_after is {shown(expires_after)}, expected {MIN_S} to {MAX_S} seconds", param="expires_after"
        )
    return seconds
