"""The body of an HTTP request, within bounds."""

from __future__ import annotations

import asyncio
from http import HTTPStatus

from fastapi import Request

from frontend.access import RefusedError
from frontend.realtime.events import RealtimeError

MAX_BODY = 256 * 1024  # bytes
BODY_S = 10.0  # in which it has to come


async def read_body(request: Request) -> bytes:
    """The whole body. Raises `RefusedError` where it is too long, or does not come."""
    try:
        return await asyncio.wait_for(_read(request), BODY_S)
    except asyncio.TimeoutError:
        message = f"the body has not come within {BODY_S:g} s"
        raise RefusedError(HTTPStatus.REQUEST_TIMEOUT, "body_too_late", message) from None


def bad_request(error: RealtimeError) -> RefusedError:
    """The protocol's error about a body, as HTTP says it."""
    return RefusedError(HTTPStatus.BAD_REQUEST, error.code, error.message, param=error.param)


async def _read(request: Request) -> bytes:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY:
            raise RefusedError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                "body_too_large",
                f"the body is too long, expected at most {MAX_BODY} bytes",
            )
    return bytes(body)
