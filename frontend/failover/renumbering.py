"""Turn numbers and times of a server that has learned a conversation by a replay, and the client's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from contract.controls import Controls, Part, Role
from contract.errors import ErrorCode
from contract.events import Committed, Error, Event, Reset, StateChanged, Transcript, UnknownEvent
from contract.state import Entry, State
from frontend.failover.replay_log import Replay

TIMES = ("at_ms", "audio_start_ms", "audio_end_ms", "input_from_ms", "open_from_ms", "speech_from_ms")
Span = tuple[int, int]


class Renumbering:
    """Translates events and states to the client's terms, controls to the server's."""

    def __init__(self, replay: Replay | None = None, lost: State | None = None, clock_ms: int = 0, tick_ms: int = 0):
        """Begin before the replay; `lost` and `clock_ms` are the client's. Without a replay both sides agree."""
        self._entries: Iterator[Entry] = iter(replay.entries if replay else ())
        self._known: dict[int, Entry] = {}  # entries by the server's turn number
        self._spans: dict[int, Span] = {}  # the client's spans of the users' audio, by the server's start
        self._lost = lost or State()
        self._open_turn, self._first_turn, self._offset = 0, 1, 0  # the server's open turn, and its first new one
        self._shift_ms = clock_ms - (len(replay.ticks) if replay else 0) * tick_ms
        self._is_moved = replay is not None
        self.state = State()  # the server's latest state

    def learn(self, events: Sequence[Event]) -> None:
        """Follow the events of the replay."""
        for event in events:
            match event:
                case Committed():
                    if entry := next(self._entries, None):
                        self._known[event.turn] = entry
                        if event.audio_start_ms is not None and entry.audio_end_ms is not None:
                            self._spans[event.audio_start_ms] = (entry.audio_start_ms or 0, entry.audio_end_ms)
                case Error(code=ErrorCode.TURN_TOO_LONG):
                    next(self._entries, None)
                case StateChanged():
                    self.state = event.state
        open_turn, next_turn = self.state.open_turn, self.state.next_turn
        self._open_turn = (open_turn or 0) if self._lost.open_turn else 0
        self._first_turn = next_turn if self._open_turn else open_turn or next_turn
        self._offset = self._lost.next_turn - self._first_turn

    @property
    def unknown_turn(self) -> int | None:
        """The server's number of the latest turn, if it is not part of the replay's entries."""
        last = self.state.entries[-1].turn if self.state.entries else None
        return None if last in self._known else last

    def to_client(self, event: Event) -> Event:
        """Return an event in the client's terms."""
        if isinstance(event, Reset):  # numbers and times begin again on both sides
            self._is_moved = False
        if not self._is_moved:
            return event
        changes = self._times({name: getattr(event, name, None) for name in TIMES})
        if getattr(event, "turn", None) is not None and not getattr(event, "out_of_band", False):
            changes["turn"] = self._client_turn(event.turn)  # type: ignore[attr-defined]
        match event:
            case Transcript():
                changes["turns"] = [{**turn, **self._times(turn)} for turn in event.turns]
            case StateChanged():
                changes["state"] = self.client_state(event.state)
            case UnknownEvent():
                changes["found"] = {**event.found, **self._times(event.found)}
        return replace(event, **changes)

    def client_state(self, state: State) -> State:
        """Return a state in the client's terms."""
        if not self._is_moved:
            return state
        return replace(
            state,
            **self._times({name: getattr(state, name, None) for name in TIMES}),
            entries=tuple(map(self._client_entry, state.entries)),
            answering=state.answering and self._client_turn(state.answering),
            open_turn=state.open_turn and self._client_turn(state.open_turn),
            next_turn=state.next_turn + self._offset,
        )

    def to_server(self, controls: Controls) -> Controls:
        """Return controls in the server's terms; a turn that the server does not have becomes 0."""
        if not self._is_moved:
            return controls
        if truncate := controls.truncate:
            truncate = replace(truncate, turn=self._server_turn(truncate.turn, Part.ANSWER))
        if forget := controls.forget:
            forget = replace(forget, turn=self._server_turn(forget.turn, forget.part))
        return replace(controls, truncate=truncate, forget=forget)

    def _times(self, found: Mapping[str, Any]) -> dict[str, Any]:
        times = {name: found[name] + self._shift_ms for name in TIMES if found.get(name) is not None}
        if span := self._spans.get(found.get("audio_start_ms") or 0) if "audio_start_ms" in times else None:
            times["audio_start_ms"], times["audio_end_ms"] = span
        return times

    def _client_entry(self, entry: Entry) -> Entry:
        times = self._times({name: getattr(entry, name, None) for name in TIMES})
        return replace(entry, turn=self._client_turn(entry.turn), **times)

    def _client_turn(self, turn: int) -> int:
        if turn == self._open_turn:
            return self._lost.open_turn or 0
        known = self._known.get(turn)
        return known.turn if known else turn + self._offset

    def _server_turn(self, turn: int, part: Part) -> int:
        if turn == self._lost.open_turn:
            return self._open_turn
        for server, entry in self._known.items():
            if (entry.turn, Part.USER if entry.role == Role.USER.value else Part.ANSWER) == (turn, part):
                return server
        return turn - self._offset if turn - self._offset >= self._first_turn else 0
