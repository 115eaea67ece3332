"""The end of a conversation: the reason, the error that the client receives, and the close code."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from contract.errors import ErrorCode
from frontend.access import RefusedError
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
    ErrorCode.DRAINING: CloseCode.GOING_AWAY,
    ErrorCode.EXPIRED: CloseCode.POLICY_VIOLATION,
    ErrorCode.SESSION_EXPIRED: CloseCode.POLICY_VIOLATION,
}
"""Close codes by error; any other error closes with INTERNAL_ERROR."""


@dataclass(frozen=True)
class Ended:
    """The end of a conversation. With `code` and `message` the client receives an error before the close."""

    why: str  # label `why` of the metric sca_bridge_ended
    code: ErrorCode | None = None
    message: str = ""
    close_code: CloseCode = CloseCode.NORMAL
    is_engine: bool = False  # the engine has failed a tick

    @classmethod
    def of_error(cls, code: ErrorCode, message: str) -> Ended:
        """Return the end by an error."""
        return cls(code.value, code, message, CLOSE_CODES.get(code, CloseCode.INTERNAL_ERROR))

    @classmethod
    def of_refusal(cls, refusal: RefusedError) -> Ended:
        """Return the end by the refusal of a place in the engine."""
        return cls(refusal.code.value, refusal.code, refusal.message, CloseCode.TRY_AGAIN_LATER)

    @classmethod
    def of_tick(cls, error: TickError) -> Ended:
        """Return the end by a tick that the engine has failed."""
        why = ErrorCode.BAD_OPTION if error.code is ErrorCode.PROMPT_TOO_LONG else error.code
        close_code = CLOSE_CODES.get(error.code, CloseCode.INTERNAL_ERROR)
        return cls(why.value, error.code, str(error), close_code, is_engine=True)


CLIENT_LEFT = Ended("gone")
CLIENT_ENDED = Ended("end")
NOT_CONNECTED = Ended("not_connected")
READS_NOTHING = Ended("reads_nothing", close_code=CloseCode.POLICY_VIOLATION)
EVENT_TOO_LONG = Ended("event_too_long", close_code=CloseCode.MESSAGE_TOO_BIG)
FAILED = Ended("tick_failed", ErrorCode.SERVER_ERROR, "the conversation failed", CloseCode.INTERNAL_ERROR)
