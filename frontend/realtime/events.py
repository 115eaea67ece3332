"""The client's events as they are parsed, before their fields are validated, and the protocol's errors."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from enum import Enum
from typing import Any

from config.loader import is_unicode, shown
from contract.errors import ErrorCode

Event = dict[str, Any]
MAX_DEPTH = 20  # nested objects and lists in an event
MAX_EVENT_ID = 512  # characters
UNREAD_CHARACTERS = 20  # characters that the model does not read (tools, ids) and that count as one


class ClientEventType(str, Enum):
    """The types of the client's events."""

    UPDATE_SESSION = "session.update"
    APPEND_AUDIO = "input_audio_buffer.append"
    COMMIT_AUDIO = "input_audio_buffer.commit"
    CLEAR_AUDIO = "input_audio_buffer.clear"
    CREATE_ITEM = "conversation.item.create"
    RETRIEVE_ITEM = "conversation.item.retrieve"
    TRUNCATE_ITEM = "conversation.item.truncate"
    DELETE_ITEM = "conversation.item.delete"
    CREATE_RESPONSE = "response.create"
    CANCEL_RESPONSE = "response.cancel"
    CLEAR_OUTPUT = "output_audio_buffer.clear"


CLIENT_EVENTS = tuple(kind.value for kind in ClientEventType)


@dataclass(eq=False)
class RealtimeError(Exception):
    """An error that the client receives as an `error` event; the conversation continues."""

    message: str
    code: str = ErrorCode.INVALID_VALUE
    param: str | None = None
    event_id: str | None = None  # id of the client's event, if the event could not be parsed


@dataclass(frozen=True)
class ClientEvent:
    """One event of a client."""

    kind: ClientEventType
    fields: Event
    event_id: str | None = None


def weight(event: ClientEvent, length: int) -> int:
    """Return the number of characters that an event of `length` counts as in the rate limit for text.

    Text that the model reads counts in full, audio not at all, and the rest little, because tools are long.
    """
    parents = (event.fields.get(name) for name in ("session", "response"))
    texts = [parent.get("instructions") for parent in parents if isinstance(parent, dict)]
    item = event.fields.get("item")
    content = item.get("content") if isinstance(item, dict) else None
    parts = [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []
    read = sum(len(text) for text in (*texts, *(part.get("text") for part in parts)) if isinstance(text, str))
    audio = sum(len(part["audio"]) for part in parts if isinstance(part.get("audio"), str))
    return read + max(0, length - read - audio) // UNREAD_CHARACTERS


def new_id(prefix: str) -> str:
    """Return a random id, as `item_...`."""
    return f"{prefix}_{secrets.token_hex(12)}"


def parse_object(text: str | bytes, what: str, code: str = ErrorCode.INVALID_VALUE) -> Event:
    """Return the object that JSON holds; `code` is the error's if it holds another value. Raises `RealtimeError`."""
    try:
        text = text if isinstance(text, str) else text.decode()
        found = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise RealtimeError(f"{what}: expected JSON", ErrorCode.INVALID_JSON) from None
    if _is_deep(found):
        raise RealtimeError(
            f"{what}: expected JSON nested at most {MAX_DEPTH} deep, got deeper", ErrorCode.INVALID_JSON
        )
    if not isinstance(found, dict):
        raise RealtimeError(f"{what}: expected an object, got {shown(found)}", code)
    if "\\u" in text and not is_unicode(json.dumps(found, ensure_ascii=False)):
        raise RealtimeError(
            f"{what}: expected Unicode, got half a character (a lone surrogate)", ErrorCode.INVALID_JSON
        )
    return found


def parse(text: str) -> ClientEvent:
    """Return the event of a text frame. Raises `RealtimeError`."""
    fields = parse_object(text, f"the frame {shown(text)}", ErrorCode.INVALID_EVENT)
    kind, event_id = fields.pop("type", None), fields.pop("event_id", None)
    if event_id is not None and (not isinstance(event_id, str) or len(event_id) > MAX_EVENT_ID):
        message = f"event_id: expected text of at most {MAX_EVENT_ID} characters, got {shown(event_id)}"
        raise RealtimeError(message, param="event_id")
    if kind not in CLIENT_EVENTS:
        message = f"type: expected one of {', '.join(CLIENT_EVENTS)}, got {shown(kind)}"
        raise RealtimeError(message, ErrorCode.UNKNOWN_EVENT_TYPE, "type", event_id)
    return ClientEvent(ClientEventType(kind), fields, event_id)


def error_event(error: RealtimeError, event_id: str | None = None, kind: str = "invalid_request_error") -> Event:
    """Return the `error` event of an error; `kind` is `server_error` if the client's event is not the cause."""
    return {
        "type": "error",
        "error": {
            "type": kind,
            "code": error.code,
            "message": error.message,
            "param": error.param,
            "event_id": event_id or error.event_id,
        },
    }


def _is_deep(value: Any) -> bool:
    """Return whether objects and lists are nested deeper than `MAX_DEPTH`."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [each for each in level if isinstance(each, (dict, list)) and each]
        if not level:
            return False
        level = [inner for each in level for inner in (each.values() if isinstance(each, dict) else each)]
    return True


def _refuse_constant(name: str) -> None:
    """Refuse NaN and Infinity, which Python's JSON parser accepts and JSON does not have."""
    raise ValueError(name)
