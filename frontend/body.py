"""The body of an HTTP request, within bounds."""

from __future__ import annotations

import asyncio
from http import HTTPStatus

from fastapi import Request

from contract.errors import ErrorCode
from frontend.access import RefusedError

MAX_BODY = 256 * 1024  # bytes
BODY_S = 10.0  # timeout of the whole body


async def read_body(request: Request) -> bytes:
    """Return the whole body. Raises `RefusedError` if it is too long or late."""
    try:
        return await asyncio.wait_for(_read(request), BODY_S)
    except asyncio.TimeoutError:
        message = f"expected the whole body within {BODY_S:g} s"
        raise RefusedError(HTTPStatus.REQUEST_TIMEOUT, ErrorCode.BODY_TOO_LATE, message) from None


async def _read(request: Request) -> bytes:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY:
            message = f"the body is too long, expected at most {MAX_BODY} bytes"
            raise RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, ErrorCode.BODY_TOO_LARGE, message)
    return bytes(body)
