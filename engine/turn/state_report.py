"""The event `state`: a snapshot from which another server can continue the conversation, reported when it changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from contract.state import Entry, State


class StateReport:
    """The latest snapshot that was reported."""

    def __init__(self) -> None:
        self._last: State | None = None

    def changed(self, scalars: State, entries: Callable[[], tuple[Entry, ...]], is_stale: bool) -> State | None:
        """Return the snapshot if it is not the latest one.

        `scalars` is the snapshot without its entries, which are read only if `is_stale`: reading them decodes text.
        """
        last = self._last
        state = replace(scalars, entries=entries() if last is None or is_stale else last.entries)
        if state == last:
            return None
        self._last = state
        return state
