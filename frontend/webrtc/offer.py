"""The offer of a call: the body of its request."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from http import HTTPStatus
from typing import NamedTuple

from fastapi import Request
from starlette.formparsers import MultiPartException, MultiPartParser

from config.loader import shown
from contract.errors import ErrorCode
from frontend.access import RefusedError
from frontend.body import read_body

MAX_CANDIDATES = 100  # addresses of a client, each of which is tried
MAX_SECTIONS = 4  # media sections: audio and data channel, and room for what is not served


class Offer(NamedTuple):
    """A client's offer."""

    sdp: str
    session: str  # JSON of the session, "" if the request has none
    model: str


async def read_offer(request: Request) -> Offer:
    """Return the offer: the body is the SDP, or a form with `sdp` and `session`. Raises `RefusedError`."""
    body, session = await read_body(request), ""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/sdp":
        sdp = body.decode(errors="replace")
    elif kind == "multipart/form-data":
        form = await _form(request, body)
        sdp, session = form.get("sdp", ""), form.get("session", "")
    else:
        message = f"expected the content type application/sdp or multipart/form-data, got {shown(kind)}"
        raise RefusedError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, ErrorCode.UNSUPPORTED_CONTENT_TYPE, message)
    lines = sdp.splitlines()
    for prefix, max_lines in (("a=candidate", MAX_CANDIDATES), ("m=", MAX_SECTIONS)):
        if (found := sum(line.startswith(prefix) for line in lines)) > max_lines:
            raise invalid_offer(f"expected at most {max_lines} lines {prefix} in the SDP, got {found}")
    return Offer(sdp, session, request.query_params.get("model", ""))


def invalid_offer(message: str) -> RefusedError:
    """Return the refusal of an offer."""
    return RefusedError(HTTPStatus.BAD_REQUEST, ErrorCode.INVALID_OFFER, message)


async def _form(request: Request, body: bytes) -> dict[str, str]:
    """Return the fields of a form, files as text. Raises `RefusedError`."""

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        form = await MultiPartParser(request.headers, stream()).parse()
    except (MultiPartException, KeyError) as error:
        message = f"the body is not valid multipart/form-data: {shown(str(error))}"
        raise RefusedError(HTTPStatus.BAD_REQUEST, ErrorCode.INVALID_FORM, message) from None
    fields = {}
    for name, value in form.items():
        fields[name] = value if isinstance(value, str) else (await value.read()).decode(errors="replace")
    return fields
