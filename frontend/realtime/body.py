"""Bodies of HTTP requests, within bounds."""

from __future__ import annotations

import json
from http import HTTPStatus

from fastapi import Request

from config.loader import shown
from frontend.access import RefusedError
from frontend.realtime.events import Event, RealtimeError

MOST_BODY = 256 * 1024  # bytes


async def read_body(request: Request) -> bytes:
    """The whole body. Raises `RefusedError` where it is too long."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MOST_BODY:
            raise RefusedError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "body_too_large", f"expected a body of at most {MOST_BODY} bytes"
            )
    return body


def parse_object(text: bytes | str, what: str) -> Event:
    """JSON that must be an object. Raises `RealtimeError`."""
    try:
        wanted = json.loads(text or b"{}")
    except (ValueError, RecursionError):
        raise RealtimeError(f"{what} is not JSON", code="invalid_json") from None
    if not isinstance(wanted, dict):
        raise RealtimeError(f"{what} is {shown(wanted)}, expected an object")
    return wanted
