"""The end of a conversation."""

from __future__ import annotations

from enum import Enum

from contract.errors import ErrorCode
from frontend.tick import TickError


class CloseCode(int, Enum):
    """The close code of a WebSocket (RFC 6455, section 7.4.1, and its registry)."""

    NORMAL = 1000
    GOING_AWAY = 1001
    POLICY_VIOLATION = 1008
    MESSAGE_TOO_BIG = 1009
    INTERNAL_ERROR = 1011
    TRY_AGAIN_LATER = 1013


CLOSE_CODES = {
    ErrorCode.FULL: CloseCode.TRY_AGAIN_LATER,
    ErrorCode.BAD_OPTION: CloseCode.POLICY_VIOLATION,
    ErrorCode.PROMPT_TOO_LONG: CloseCode.POLICY_VIOLATION,
}


def end_of(error: TickError) -> tuple[str, CloseCode]:
    """Return why a conversation ends with `error`, and the close code."""
    code = ErrorCode.BAD_OPTION if error.code is ErrorCode.PROMPT_TOO_LONG else error.code
    return code.value, CLOSE_CODES.get(error.code, CloseCode.INTERNAL_ERROR)
