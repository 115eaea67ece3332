"""The event `state`: a snapshot from which another server can continue the conversation, emitted when it changes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from contract.events import SpeechStarted, SpeechStopped, StateChanged, Text
from contract.state import Entry, State
from engine.turn import history
from engine.turn.actions import FRAME_MS
from engine.turn.detection import DetectorState
from engine.turn.generation import Phase

if TYPE_CHECKING:  # `conversation` imports this module
    from engine.turn.conversation import TurnConversation

CHANGE_NO_ENTRY = (Text, SpeechStarted, SpeechStopped)


class StateReport:
    """Owns the latest snapshot that was emitted."""

    def __init__(self) -> None:
        self._latest: State | None = None

    def emit_change(self, one: TurnConversation) -> None:
        """Emit the state of a conversation if it changed; entries are read only after an event that may change them."""
        is_stale = self._latest is None or any(not isinstance(event, CHANGE_NO_ENTRY) for event in one.events)
        entries = _entries(one) if self._latest is None or is_stale else self._latest.entries
        state = replace(_without_entries(one), entries=entries)
        if state != self._latest:
            self._latest = state
            one.tick_events.emit(StateChanged, state=state)


def _without_entries(one: TurnConversation) -> State:
    current, open_turn, detector = one.answers.current, one.input.open, one.turn_taking.detector
    is_queued = current is not None and current.phase is Phase.QUEUED
    return State(
        out_of_band=current is not None and current.kind.event_fields.get("out_of_band", False),
        pending=tuple(Entry(0, item.role.value, item.text) for item in one.messages.waiting),
        answering=current.answer.turn if current and not is_queued else None,
        answer_due=is_queued or (open_turn is not None and open_turn.answer_when_done),
        input=one.input.state,
        input_from_ms=one.input.earliest * FRAME_MS,
        open_turn=open_turn.number if open_turn else None,
        open_from_ms=open_turn.first * FRAME_MS if open_turn else None,
        open_text=open_turn.entry.typed if open_turn else "",
        speech_from_ms=detector.started_ms if one.detects_turns and detector.is_speech else None,
        awaits_silence=one.detects_turns and detector.state is DetectorState.AWAITS_SILENCE,
        turn_options=dict(one.controls.turn_options),
        next_turn=one.history.next_turn,
    )


def _entries(one: TurnConversation) -> tuple[Entry, ...]:
    """Return the history in order, with what waits for prefill and without the open turn and the current answer."""
    queued = [chunk.entry for chunk in one.queue if chunk.entry]
    current = one.answers.current.answer if one.answers.current else None
    found = (_entry(one, each) for each in dict.fromkeys([*one.history.entries, *queued]) if each is not current)
    return tuple(entry for entry in found if entry and entry.turn != history.OUT_OF_BAND)


def _entry(one: TurnConversation, entry: history.Entry) -> Entry | None:
    match entry:
        case history.UserAudio(span_ms=None):
            return None  # the open turn
        case history.UserAudio(span_ms=(start_ms, end_ms)):
            return Entry(entry.turn, "user", entry.typed, start_ms, end_ms)
        case history.UserText():
            return Entry(entry.turn, "user", entry.text)
        case history.Message():
            return Entry(entry.turn, entry.role.value, entry.text)
        case history.Answer():
            return Entry(entry.turn, "assistant", one.config.decode(entry.tokens))
    raise TypeError(f"expected an entry of the history, got {entry!r}")
