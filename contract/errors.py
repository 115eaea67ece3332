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

    # The bridge refuses a client or a request, with an HTTP status; `FULL` also does.
    INVALID_API_KEY = "invalid_api_key"
    TOO_MANY_SECRETS = "too_many_secrets"
    ORIGIN_NOT_ALLOWED = "origin_not_allowed"
    TOO_MANY_SOCKETS = "too_many_sockets"
    TOO_MANY_CONVERSATIONS = "too_many_conversations"
    NOT_SERVED = "not_served"
    CALL_NOT_FOUND = "call_not_found"
    BODY_TOO_LATE = "body_too_late"
    BODY_TOO_LARGE = "body_too_large"
    UNSUPPORTED_CONTENT_TYPE = "unsupported_content_type"

    # The bridge ends a conversation.
    DRAINING = "draining"
    IDLE = "idle"
    EXPIRED = "expired"
    SESSION_EXPIRED = "session_expired"
    SERVER_ERROR = "server_error"

    # The bridge rejects a frame of /ws/pcm16; the conversation continues.
    EMPTY_FRAME = "empty_frame"
    ODD_FRAME = "odd_frame"
    FRAME_TOO_LARGE = "frame_too_large"
    NOT_JSON = "not_json"
    UNKNOWN_CONTROL = "unknown_control"
    UNKNOWN_OPTION = "unknown_option"
    NO_TURNS = "no_turns"
    BAD_MESSAGE = "bad_message"
    BAD_NUMBER = "bad_number"
    TOO_LATE = "too_late"
    CANNOT_RESUME = "cannot_resume"

    # The bridge rejects an event of /v1/realtime; the session continues. The codes are OpenAI's if OpenAI has one.
    INVALID_VALUE = "invalid_value"
    INVALID_EVENT = "invalid_event"
    INVALID_JSON = "invalid_json"
    INVALID_FORM = "invalid_form"
    INVALID_OFFER = "invalid_offer"
    UNKNOWN_EVENT_TYPE = "unknown_event_type"
    STRING_ABOVE_MAX_LENGTH = "string_above_max_length"
    ACTIVE_RESPONSE = "conversation_already_has_active_response"
    NO_ACTIVE_RESPONSE = "response_cancel_not_active"
    INPUT_BUFFER_EMPTY = "input_audio_buffer_commit_empty"
    INPUT_BUFFER_FULL = "input_audio_buffer_full"
    OUTPUT_BUFFER_EMPTY = "output_audio_buffer_empty"
    DUPLICATE_ITEM = "item_create_duplicate_item_id"
    UNKNOWN_PREVIOUS_ITEM = "item_create_invalid_previous_item_id"
    UNKNOWN_ITEM_TO_RETRIEVE = "item_retrieve_invalid_item_id"
    UNKNOWN_ITEM_TO_TRUNCATE = "item_truncate_invalid_item_id"
    UNKNOWN_ITEM_TO_DELETE = "item_delete_invalid_item_id"


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
