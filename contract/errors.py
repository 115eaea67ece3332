"""Error codes of the whole system, and how a code travels in the text of a Triton error."""

from __future__ import annotations

import re
from enum import Enum


class ErrorCode(str, Enum):
    """The code of an error. Messages are for people; programs compare codes."""

    # The engine fails a tick, and with it the conversation.
    FULL = "full"
    BAD_OPTION = "bad_option"
    PROMPT_TOO_LONG = "prompt_too_long"
    CONTEXT_FULL = "context_full"
    TICK_FAILED = "tick_failed"

    # The engine reports an `error` event; the conversation continues.
    BAD_CONTROL = "bad_control"
    TURN_TOO_LONG = "turn_too_long"
    ANSWER_ACTIVE = "answer_active"
    NOTHING_TO_CANCEL = "nothing_to_cancel"
    NOTHING_TO_COMMIT = "nothing_to_commit"
    NOTHING_TO_FORGET = "nothing_to_forget"
    NOTHING_TO_TRUNCATE = "nothing_to_truncate"


CODED = re.compile(r"\[([a-z_]+)\] (.*)", re.DOTALL)


def coded(code: ErrorCode, message: str) -> str:
    """Return the text of a Triton error: the code in brackets, then the message."""
    return f"[{code.value}] {message}"


def decode(text: str) -> tuple[ErrorCode, str]:
    """Split the text of a Triton error into code and message; text without a known code is `TICK_FAILED`.

    Triton may put its own words before the code.
    """
    found = CODED.search(text)
    if found is None:
        return ErrorCode.TICK_FAILED, text
    try:
        return ErrorCode(found[1]), found[2]
    except ValueError:
        return ErrorCode.TICK_FAILED, text
