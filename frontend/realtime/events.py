"""Events of the protocol as they come in and go out; what is wrong with one is a `RealtimeError`."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from typing import Any

from config.loader import is_unicode, shown

Event = dict[str, Any]
REST_COUNTS = 20  # so many characters that nobody reads count as one
MAX_DEPTH = 20  # of what a client sends: dictionaries and lists in each other
CLIENT_EVENTS = (
    "session.update",
    "input_audio_buffer.append",
    "input_audio_buffer.commit",
    "input_audio_buffer.clear",
    "conversation.item.create",
    "conversation.item.retrieve",
    "conversation.item.truncate",
    "conversation.item.delete",
    "response.create",
    "response.cancel",
    "output_audio_buffer.clear",
)


@dataclass(eq=False)
class RealtimeError(Exception):
    """What a client's event has no place for; the conversation goes on."""

    message: str
    code: str = "invalid_value"
    param: str | None = None
    event_id: str | None = None  # of the client's event, where its kind is not known


@dataclass(frozen=True)
class ClientEvent:
    """One event of a client."""

    kind: str  # of CLIENT_EVENTS
    fields: Event
    event_id: str | None = None

    def text(self, name: str) -> str:
        """A field that must be a text without NUL. Raises `RealtimeError`."""
        return expect_text(self.fields.get(name), name)

    def whole(self, name: str) -> int:
        """A field that must be a whole number from 0. Raises `RealtimeError`."""
        value = self.fields.get(name)
        if type(value) is not int or not 0 <= value < 2**31:
            raise RealtimeError(f"{name} is {shown(value)}, expected a whole number from 0", param=name)
        return value

    def mapping(self, name: str) -> Event:
        """A field that must be an object; an empty one where it is missing. Raises `RealtimeError`."""
        value = self.fields.get(name)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise RealtimeError(f"{name} is {shown(value)}, expected an object", param=name)
        return value


def weight(event: ClientEvent, length: int) -> int:
    """The characters that an event of `length` counts as: what the model reads of it, and little of the rest.

    Tools that nobody here calls are long; sound needs no pace.
    """
    parents = (event.fields.get(name) for name in ("session", "response"))
    texts = [parent.get("instructions") for parent in parents if isinstance(parent, dict)]
    item = event.fields.get("item")
    content = item.get("content") if isinstance(item, dict) else None
    parts = [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []
    read = sum(len(text) for text in (*texts, *(part.get("text") for part in parts)) if isinstance(text, str))
    sound = sum(len(part["audio"]) for part in parts if isinstance(part.get("audio"), str))
    return read + max(0, length - read - sound) // REST_COUNTS


def new_id(prefix: str) -> str:
    """A random id, as `item_...`."""
    return f"{prefix}_{secrets.token_hex(12)}"


def expect_text(value: Any, name: str) -> str:
    """`value`, which must be a text of Unicode without NUL. Raises `RealtimeError`."""
    if not isinstance(value, str):
        raise RealtimeError(f"{name} is {shown(value)}, expected text", param=name)
    if "\0" in value or not is_unicode(value):
        raise RealtimeError(f"{name} holds a NUL or half a character, expected Unicode text", param=name)
    return value


def parse_object(text: str | bytes, what: str, code: str = "invalid_value") -> Event:
    """JSON that must be an object; `code` is the error's where it is something else. Raises `RealtimeError`."""
    try:
        text = text if isinstance(text, str) else text.decode()
        found = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise RealtimeError(f"{what} is not JSON", code="invalid_json") from None
    if _is_deep(found):
        raise RealtimeError(f"{what} is nested more than {MAX_DEPTH} deep", code="invalid_json")
    if not isinstance(found, dict):
        raise RealtimeError(f"{what} is {shown(found)}, expected an object", code=code)
    if "\\u" in text and not is_unicode(json.dumps(found, ensure_ascii=False)):
        raise RealtimeError(f"{what} holds half a character, expected Unicode", code="invalid_json")
    return found


def parse(text: str) -> ClientEvent:
    """A text frame as an event. Raises `RealtimeError`."""
    fields = parse_object(text, f"the frame {shown(text)}", code="invalid_event")
    kind, event_id = fields.pop("type", None), fields.pop("event_id", None)
    if event_id is not None and (not isinstance(event_id, str) or len(event_id) > 512):
        raise RealtimeError("event_id is no text of at most 512 characters", param="event_id")
    if kind not in CLIENT_EVENTS:
        message = f"the event type {shown(kind)} came, expected one of {', '.join(CLIENT_EVENTS)}"
        raise RealtimeError(message, code="unknown_event_type", param="type", event_id=event_id)
    return ClientEvent(kind, fields, event_id)


def _is_deep(value: Any) -> bool:
    """Whether dictionaries and lists are nested deeper than anything that the protocol has."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [each for each in level if isinstance(each, (dict, list)) and each]
        if not level:
            return False
        level = [inner for each in level for inner in (each.values() if isinstance(each, dict) else each)]
    return True


def _no_constant(name: str) -> None:
    """NaN and Infinity, which Python's JSON knows and nobody else's."""
    raise ValueError(name)


def error_event(error: RealtimeError, event_id: str | None = None, kind: str = "invalid_request_error") -> Event:
    """An error as the protocol tells it; `kind` is `server_error` where it is not the client's."""
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
