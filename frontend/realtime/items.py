"""The items of a conversation as the protocol has them, and where each is in the engine's history."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from config.loader import shown
from config.settings import MAX_PROMPT_CHARACTERS, MAX_TYPED
from frontend.realtime.events import ClientEvent, Event, RealtimeError, expect_text, new_id

MAX_ITEMS = 1000  # of one conversation; the oldest are forgotten by the list, the engine's context is far shorter
ROOT = "root"  # before the first, as a previous_item_id
TEXT_PARTS = ("input_text", "output_text", "text")
ROLES = ("user", "assistant", "system")
MAX_CHARACTERS = {"user": MAX_TYPED, "assistant": MAX_PROMPT_CHARACTERS, "system": MAX_PROMPT_CHARACTERS}


@dataclass(eq=False)
class Item:
    """A message."""

    id: str
    role: str
    content: list[Event]
    status: str = "completed"
    turn: int | None = None  # of the engine's history
    is_spoken: bool = False  # by the engine, not written by a client

    @property
    def part(self) -> str:
        """Which side of the engine's turn it is."""
        return "user" if self.role == "user" else "answer"

    @classmethod
    def of_text(cls, role: str, text: str) -> Item:
        """A new one of text alone."""
        return cls(new_id("item"), role, [{"type": "input_text", "text": text}])

    @property
    def text(self) -> str:
        """Its text, without what was spoken by a user."""
        return "\n".join(part.get("text") or part.get("transcript") or "" for part in self.content).strip()

    def keep(self, text: str) -> None:
        """An answer's text, as far as it was heard."""
        part = self.content[0]
        part["text" if "text" in part else "transcript"] = text

    def about(self) -> Event:
        """As the protocol tells it."""
        return {
            "id": self.id,
            "object": "realtime.item",
            "type": "message",
            "status": self.status,
            "role": self.role,
            "content": [dict(part) for part in self.content],
        }


class Items:
    """The list, in the order of the conversation."""

    def __init__(self) -> None:
        self._items: dict[str, Item] = {}

    def add(self, item: Item) -> str | None:
        """Appends an item; returns the id of the one before it."""
        previous = self.last
        self._items[item.id] = item
        if len(self._items) > MAX_ITEMS:
            del self._items[next(iter(self._items))]
        return previous

    @property
    def last(self) -> str | None:
        """The id of the latest item."""
        return next(reversed(self._items), None)

    def get(self, item_id: str, code: str) -> Item:
        """The item of an id. Raises `RealtimeError` with `code`."""
        try:
            return self._items[item_id]
        except KeyError:
            raise RealtimeError(
                f"there is no item {shown(item_id)} in this conversation", code=code, param="item_id"
            ) from None

    def remove(self, item: Item) -> None:
        """Takes an item out, if it has not left the list by itself."""
        self._items.pop(item.id, None)

    def drop_turn(self, turn: int) -> None:
        """The engine's context has no room for a turn any more."""
        for item in self._items.values():
            if item.turn == turn:
                item.turn = None

    def parse(self, event: ClientEvent) -> tuple[Item, list[Any]]:
        """The item that an event adds, and the base64 of the sound in it. Raises `RealtimeError`."""
        wanted = event.mapping("item")
        item_id, kind, role = wanted.get("id"), wanted.get("type"), wanted.get("role")
        if item_id is not None:
            expect_text(item_id, "item.id")
            if not 0 < len(item_id) <= 64:
                raise RealtimeError("item.id is no text of 1 to 64 characters", param="item.id")
            if item_id == ROOT:
                raise RealtimeError(f"item.id is {ROOT!r}, the place before the first", param="item.id")
            if item_id in self._items:
                raise RealtimeError(
                    f"an item {shown(item_id)} exists", code="item_create_duplicate_item_id", param="item.id"
                )
        if kind != "message":
            raise RealtimeError(f"item.type is {shown(kind)}, expected 'message'", param="item.type")
        if role not in ROLES:
            raise RealtimeError(f"item.role is {shown(role)}, expected one of {', '.join(ROLES)}", param="item.role")
        self._check_place(event.fields.get("previous_item_id"))
        content, sounds = _content(wanted.get("content"), str(role))
        item = Item(item_id or new_id("item"), str(role), content)
        if not sounds and not item.text:
            raise RealtimeError("item.content is empty, expected text or sound", param="item.content")
        most = MAX_CHARACTERS[item.role]
        if len(item.text) > most:
            message = f"the item's text is {len(item.text)} characters long, expected at most {most}"
            raise RealtimeError(message, code="string_above_max_length", param="item.content")
        return item, sounds

    def _check_place(self, previous: Any) -> None:
        """Items are added at the end alone."""
        if previous is None or previous == self.last or (previous == ROOT and not self._items):
            return
        known = isinstance(previous, str) and (previous == ROOT or previous in self._items)
        reason = "items are added at the end alone" if known else "there is no such item"
        raise RealtimeError(
            f"previous_item_id is {shown(previous)}: {reason}",
            code="item_create_invalid_previous_item_id",
            param="previous_item_id",
        )


def _content(parts: Any, role: str) -> tuple[list[Event], list[Any]]:
    if not isinstance(parts, list) or len(parts) > 16:
        raise RealtimeError(f"item.content is {shown(parts)}, expected a list of parts", param="item.content")
    content: list[Event] = []
    sounds: list[Any] = []
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in TEXT_PARTS:
            text = expect_text(part.get("text"), "item.content.text")
            content.append({"type": "output_text" if role == "assistant" else "input_text", "text": text})
        elif kind == "input_audio" and role == "user":
            sounds.append(part.get("audio"))
            content.append({"type": "input_audio", "transcript": None})
        elif kind in ("output_audio", "audio") and role == "assistant":
            transcript = expect_text(part.get("transcript") or "", "item.content.transcript")
            content.append({"type": "output_audio", "transcript": transcript})
        else:
            raise RealtimeError(
                f"a part of a {role}'s item has the type {shown(kind)}, expected text"
                + (" or input_audio" if role == "user" else ""),
                param="item.content.type",
            )
    return content, sounds
