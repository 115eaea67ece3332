"""Bodies of HTTP requests, within bounds."""

from __future__ import annotations

import asyncio
import json
from http import HTTPStatus

from fastapi import Request

from config.loader import is_unicode, shown
from frontend.access import RefusedError
from frontend.realtime.events import Event, RealtimeError

MOST_BODY = 256 * 1024  # bytes
BODY_S = 10.0  # in which it has to come


async def read_body(request: Request) -> bytes:
    """The whole body. Raises `RefusedError` where it is too long, or does not come."""
    try:
        return await asyncio.wait_for(_read(request), BODY_S)
    except asyncio.TimeoutError:
        message = f"the body has not come within {BODY_S:g} s"
        raise RefusedError(HTTPStatus.REQUEST_TIMEOUT, "body_too_late", message) from None


async def _read(request: Request) -> bytes:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MOST_BODY:
            raise RefusedError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                "body_too_large",
                f"the body is too long, expected at most {MOST_BODY} bytes",
            )
    return bytes(body)


def parse_object(text: bytes | str, what: str) -> Event:
    """JSON that must be an object. Raises `RealtimeError`."""
    try:
        wanted = json.loads(text or b"{}")
        has_half = not is_unicode(json.dumps(wanted, ensure_ascii=False))
    except (ValueError, RecursionError):
        raise RealtimeError(f"{what} is not JSON", code="invalid_json") from None
    if not isinstance(wanted, dict):
        raise RealtimeError(f"{what} is {shown(wanted)}, expected an object")
    if has_half:
        raise RealtimeError(f"{what} holds half a character, expected Unicode", code="invalid_json")
    return wanted
