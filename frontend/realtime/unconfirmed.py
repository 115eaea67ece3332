"""What a client has asked of the engine's history, until the engine has done it: items added, commits, deletions."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from frontend.realtime.items import Item


@dataclass(eq=False)
class Commit:
    """A client's commit that is on its way to the engine."""

    event_id: str | None


class Unconfirmed:
    """Two queues, since the engine confirms each kind in its own order: written items, and turns of sound."""

    def __init__(self) -> None:
        self._texts: deque[Item] = deque()
        self._sounds: deque[Item | Commit] = deque()  # in the order of the engine's `commit`s
        self._committed: Item | Commit | None = None  # what the `commit` of this tick is for
        self._deleted: set[str] = set()  # ids of items that the client has deleted since

    def __contains__(self, item: Item) -> bool:
        return item in self._texts or item in self._sounds

    @property
    def has_commit(self) -> bool:
        """Whether a client's commit is on its way."""
        return any(isinstance(sound, Commit) for sound in self._sounds)

    def add_text(self, item: Item) -> None:
        """A written item is on its way."""
        self._texts.append(item)

    def add_sound(self, sound: Item | Commit) -> None:
        """A turn of sound is on its way: an item's, or what the microphone has heard."""
        self._sounds.append(sound)

    def delete(self, item: Item) -> None:
        """The client has deleted an item that is on its way."""
        self._deleted.add(item.id)

    def is_deleted(self, item: Item) -> bool:
        """Whether the client had deleted an item before it was confirmed; told once."""
        was = item.id in self._deleted
        self._deleted.discard(item.id)
        return was

    def note_asked(self, parameters: Mapping[str, Any]) -> None:
        """The engine answers the tick that was asked with these."""
        self._committed = self._sounds.popleft() if "commit" in parameters and self._sounds else None

    def confirmed(self, event: Mapping[str, Any]) -> Item | None:
        """The item that an event `committed` is about, with its turn; None where it is what the user has said."""
        if "audio_start_ms" in event:
            added, self._committed = self._committed, None
        else:
            added = self._texts.popleft() if self._texts else None
        if not isinstance(added, Item):
            return None
        added.turn = event["turn"]
        return added

    def refuse_text(self) -> None:
        """The engine takes no item as long as the next written one."""
        if self._texts:
            self._texts.popleft()

    def refused_commit(self) -> Commit | None:
        """The client's commit that this tick's `commit` was, which heard nothing; one that is confirmed is none."""
        commit, self._committed = self._committed, None
        return commit if isinstance(commit, Commit) else None
