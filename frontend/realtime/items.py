"""The items of a conversation as the client has them, and the place of each in the engine's history."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, NamedTuple

from config.loader import shown
from contract.controls import Controls, ForgetControl, ItemControl, Part, Role, TruncateControl
from contract.errors import ErrorCode
from contract.events import Committed, Error, Forgotten, Truncated, TurnsDropped
from frontend.realtime.events import Event, RealtimeError, new_id
from frontend.realtime.requests import ROOT, NewItem, text_of
from frontend.session.server_clock import ServerClock

MAX_ITEMS = 1000  # items in the client's list; the engine's context is far shorter


class Placement(Enum):
    """The place of an item in the engine's history."""

    SENT = auto()  # sent to the engine, not confirmed
    HELD = auto()  # in the engine's history
    LEAVING = auto()  # deleted by the client; leaves the history when it is confirmed and its answer has ended
    EVICTED = auto()  # not in the history: evicted, refused or deleted


@dataclass(eq=False)
class Item:
    """A message."""

    id: str
    role: str
    content: list[Event]
    status: str = "completed"
    turn: int | None = None  # number of the engine's turn
    placement: Placement = Placement.SENT
    is_spoken: bool = False  # True if the engine has spoken the item

    @classmethod
    def of_text(cls, role: Role, text: str) -> Item:
        """Return a new item of text."""
        return cls(new_id("item"), role.value, [{"type": "input_text", "text": text}])

    @property
    def part(self) -> Part:
        """The side of the engine's turn that the item is."""
        return Part.USER if self.role == Role.USER.value else Part.ANSWER

    @property
    def text(self) -> str:
        """The text and the transcript, without a user's audio."""
        return text_of(self.content)

    def keep(self, text: str) -> None:
        """Replace the text of an answer by what was heard."""
        part = self.content[0]
        part["text" if "text" in part else "transcript"] = text

    def about(self) -> Event:
        """Return the item as the client sees it."""
        return {
            "id": self.id,
            "object": "realtime.item",
            "type": "message",
            "status": self.status,
            "role": self.role,
            "content": [dict(part) for part in self.content],
        }


@dataclass(eq=False)
class Commit:
    """A client's commit that the engine has not confirmed."""

    event_id: str | None


class Truncation(NamedTuple):
    """The part of an answer that the user has heard."""

    item: Item
    content_index: int
    heard_ms: int

    @property
    def event(self) -> Event:
        """The event that confirms the truncation."""
        return {
            "type": "conversation.item.truncated",
            "item_id": self.item.id,
            "content_index": self.content_index,
            "audio_end_ms": self.heard_ms,
        }


class Items:
    """The client's list, in the order of the conversation, and all changes that the engine has not confirmed.

    The engine confirms added text and turns of audio each in their own order, truncations and deletions in the order
    of the requests.
    """

    def __init__(self, clock: ServerClock, send: Callable[..., None]):
        self._clock, self._send = clock, send
        self._items: dict[str, Item] = {}
        self._texts: deque[Item] = deque()
        self._audio: deque[Item | Commit] = deque()  # in the order of the engine's `commit`s
        self._committing: Item | Commit | None = None  # what the `commit` of the current tick ends
        self._truncations: deque[Truncation] = deque()
        self._leaving: list[Item] = []  # items whose deletion waits for the end of a response
        self._forgetting: dict[tuple[int, str], Item] = {}  # deletions that the engine has not confirmed

    @property
    def last(self) -> str | None:
        """The id of the latest item."""
        return next(reversed(self._items), None)

    @property
    def has_commit(self) -> bool:
        """True while a client's commit is not confirmed."""
        return any(isinstance(each, Commit) for each in self._audio)

    def get(self, item_id: str, code: ErrorCode) -> Item:
        """Return the item of an id. Raises `RealtimeError` with `code`."""
        try:
            return self._items[item_id]
        except KeyError:
            raise RealtimeError(
                f"item_id: expected the id of an item in this conversation, got {shown(item_id)}", code, "item_id"
            ) from None

    def expect_new(self, wanted: NewItem, previous: Any) -> None:
        """Raise `RealtimeError` unless an item can be appended after `previous`."""
        if wanted.id is not None and wanted.id in self._items:
            message = f"item.id: expected a new id, got that of an item in this conversation, {shown(wanted.id)}"
            raise RealtimeError(message, ErrorCode.DUPLICATE_ITEM, "item.id")
        if previous is None or previous == self.last or (previous == ROOT and not self._items):
            return
        expected = f"the last item, {shown(self.last or ROOT)}, because items are appended at the end"
        message = f"previous_item_id: expected {expected}, got {shown(previous)}"
        raise RealtimeError(message, ErrorCode.UNKNOWN_PREVIOUS_ITEM, "previous_item_id")

    def append(self, item: Item) -> str | None:
        """Append an item to the client's list; return the id of the item before."""
        previous = self.last
        self._items[item.id] = item
        if len(self._items) > MAX_ITEMS:
            del self._items[next(iter(self._items))]
        return previous

    # Additions

    def send_text(self, item: Item) -> None:
        """Add an item of text to the engine's history."""
        self._texts.append(item)
        self._clock.request(items=(ItemControl(Role(item.role), item.text),))

    def expect_audio(self, added: Item | Commit) -> None:
        """Expect the engine's confirmation of a turn of audio: an item's, or the microphone's."""
        self._audio.append(added)

    def begin_tick(self, controls: Controls) -> None:
        """Prepare for the events of the tick that carried `controls`."""
        self._committing = self._audio.popleft() if controls.commit and self._audio else None

    def confirm(self, event: Committed) -> Item | None:
        """Return the item that the engine has added; None for a turn that the user has spoken."""
        if event.audio_start_ms is not None:
            added, self._committing = self._committing, None
        else:
            added = self._texts.popleft() if self._texts else None
        if not isinstance(added, Item):
            return None
        if added.placement is Placement.LEAVING:
            added.turn = event.turn
            self._forget(added)
        else:
            self.hold(added, event.turn)
        return added

    def hold(self, item: Item, turn: int) -> None:
        """Place an item in the history: the engine has reported its turn."""
        item.turn, item.placement = turn, Placement.HELD

    def refuse_text(self) -> None:
        """Drop the oldest unconfirmed text: the engine has refused it, because it is too long."""
        if self._texts:
            self._texts.popleft().placement = Placement.EVICTED

    def refuse_audio(self) -> Commit | None:
        """Return the client's commit that the engine has found no audio for; None if it was an item's."""
        refused, self._committing = self._committing, None
        if isinstance(refused, Item):
            refused.placement = Placement.EVICTED
        return refused if isinstance(refused, Commit) else None

    # Truncations

    def truncate(self, truncation: Truncation) -> None:
        """Truncate an answer in the engine's history; the client is informed when the engine has done it."""
        item = truncation.item
        if item.turn is None or item.placement is Placement.EVICTED:
            self._send(truncation.event)
            return
        self._truncations.append(truncation)
        self._clock.request(truncate=TruncateControl(item.turn, truncation.heard_ms))

    def truncated(self, event: Truncated | Error) -> None:
        """Report the oldest truncation to the client: the engine has done it, or found nothing to truncate."""
        if not self._truncations:
            return
        truncation = self._truncations.popleft()
        if isinstance(event, Truncated):
            truncation.item.keep(event.heard_text)
        self._send(truncation.event)

    # Deletions

    def delete(self, item: Item, is_streaming: bool) -> None:
        """Delete an item, after the end of its response if it `is_streaming`. Raises `RealtimeError`."""
        if item.placement is Placement.LEAVING:
            message = f"item_id: expected an item that is not being deleted, got {shown(item.id)}"
            raise RealtimeError(message, ErrorCode.UNKNOWN_ITEM_TO_DELETE, "item_id")
        if is_streaming:
            item.placement = Placement.LEAVING
            self._leaving.append(item)
            return
        self._remove(item)
        if item.placement is Placement.SENT:
            item.placement = Placement.LEAVING
        elif item.placement is Placement.HELD:
            self._forget(item)

    def release(self) -> None:
        """Apply the deletions that waited: no response is in progress."""
        leaving, self._leaving = self._leaving, []
        for item in leaving:
            if item.id in self._items and self._items[item.id] is item:
                self._remove(item)
            if item.placement is Placement.LEAVING:
                self._forget(item)

    def forgotten(self, event: Forgotten | Error, is_responding: bool) -> None:
        """Finish a deletion that the engine has carried out, or found nothing for.

        If the engine refuses it while it `is_responding`, it is repeated after the response.
        """
        item = self._forgetting.pop((event.turn or 0, event.part or ""), None)
        if item is None:
            return
        if isinstance(event, Error) and is_responding:
            self._leaving.append(item)
        else:
            item.placement = Placement.EVICTED

    def evict(self, event: TurnsDropped) -> None:
        """Note that the engine has evicted a turn."""
        for item in (*self._items.values(), *self._leaving):
            if item.turn == event.turn:
                item.placement = Placement.EVICTED

    def _remove(self, item: Item) -> None:
        self._items.pop(item.id, None)
        self._send({"type": "conversation.item.deleted", "item_id": item.id})

    def _forget(self, item: Item) -> None:
        assert item.turn is not None
        item.placement = Placement.LEAVING
        self._forgetting[item.turn, item.part.value] = item
        self._clock.request(forget=ForgetControl(item.turn, item.part))
