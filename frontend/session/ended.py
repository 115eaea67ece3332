"""The end of a conversation."""

from __future__ import annotations

from enum import Enum


class CloseCode(int, Enum):
    """The close code of a WebSocket (RFC 6455, section 7.4.1, and its registry)."""

    NORMAL = 1000
    GOING_AWAY = 1001
    POLICY_VIOLATION = 1008
    MESSAGE_TOO_BIG = 1009
    INTERNAL_ERROR = 1011
    TRY_AGAIN_LATER = 1013
