"""A conversation that is rebuilt from its reported state, on another server, continues as the first one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from contract.controls import Controls, ItemControl, Role
from contract.state import Entry, InputState, State
from tests.turn.test_random_conversations import RandomConversation
from tests.turn_machine import SILENCE, TICK, TICK_MS, conversation

CONVERSATIONS = 100
QUIET = {"detection": "manual", "create_response": False}
LARGE = 100_000  # positions of a context that evicts nothing


class Recorded(RandomConversation):
    """A random conversation whose audio and latest state are kept."""

    def __init__(self, seed: int):
        super().__init__(seed, thinker_positions=LARGE, talker_positions=LARGE)
        self.audio: list[list[float]] = []
        self.state = State()

    def draw_controls(self) -> Controls:
        """Draw no `listen` while speech is detected: the speech that it ends cannot be sent again."""
        controls = super().draw_controls()
        return replace(controls, listen=False) if self.one.detects_turns else controls

    def tick(self) -> None:
        super().tick()
        self.audio.append(self.probabilities)
        for event in self.one.events:
            self.state = getattr(event, "state", self.state)


class Rebuilt:
    """Another server's conversation, made of a state and the audio of the user."""

    def __init__(self, recorded: Recorded):
        self.recorded, self.state = recorded, recorded.state
        turn = recorded.one.options.turn
        self.one = conversation(recorded.one.config, report_state=True)
        self.one.options = replace(recorded.one.options, turn=replace(turn, **QUIET))
        self.one.turn_taking.detector.change(self.one.options.turn)
        for entry in self.state.entries:
            self.add(entry)
        self.tick(turn={"detection": "server_vad" if turn.detection == "manual" else "manual"})
        self.tick(turn={"detection": turn.detection, "create_response": turn.create_response}, clear=True)
        self.open()

    def tick(self, probabilities: list[float] = SILENCE, **controls: Any) -> None:
        """Compute a tick, with all that is queued prefilled."""
        self.one.advance(TICK, Controls(**controls), probabilities if self.one.detects_turns else [])
        while self.one.next_prefill():
            pass
        self.one.finish_tick()

    def add(self, entry: Entry) -> None:
        """Send an entry: text as an item, audio from its first to its last millisecond."""
        if entry.audio_start_ms is None:
            self.tick(items=(ItemControl(Role(entry.role), entry.text or " "),))
            return
        first, end = entry.audio_start_ms, entry.audio_end_ms
        offset = first % TICK_MS
        length = offset + end - first
        count = -(-length // TICK_MS)
        for number in range(count):
            controls: dict[str, Any] = {"listen": offset or True, "message": entry.text} if number == 0 else {}
            if number == count - 1:
                controls["commit"] = length - number * TICK_MS
            self.tick(**controls)

    def open(self) -> None:
        """Send the open turn again from its first millisecond; its text last, since text joins speech in progress."""
        state = self.state
        if state.open_from_ms is None:
            return
        first = state.open_from_ms // TICK_MS
        ticks = self.recorded.audio[first:]
        for number, probabilities in enumerate(ticks, 1):
            controls: dict[str, Any] = {"message": state.open_text} if number == len(ticks) else {}
            if number == 1 and state.input is not InputState.DEFAULT:
                controls["listen"] = state.open_from_ms % TICK_MS or True
            self.tick(probabilities, **controls)


def parts(entries: tuple[Entry, ...]) -> list[tuple[str, str, int]]:
    """Return role, text and duration of the entries."""
    return [(e.role, e.text.strip(), (e.audio_end_ms or 0) - (e.audio_start_ms or 0)) for e in entries]


def test_conversation_rebuilt_from_its_state_has_the_same_history_and_open_turn():
    opened = 0
    for seed in range(CONVERSATIONS):
        recorded = Recorded(seed)
        for _ in range(recorded.chance.randint(10, 54)):
            recorded.tick()
        state, rebuilt = recorded.state, Rebuilt(recorded)
        found = rebuilt.one._state_report._latest
        assert parts(found.entries) == parts(state.entries), seed
        is_open = state.open_from_ms is not None
        assert (found.open_from_ms is not None) == is_open or not recorded.one.detects_turns, seed
        if is_open:
            opened += 1
            length = recorded.one.clock_ms - state.open_from_ms
            assert rebuilt.one.clock_ms - found.open_from_ms == length, seed
            assert found.open_text == state.open_text, seed
        is_answered = state.answer_due or state.answering is not None
        if is_answered and not state.out_of_band:
            rebuilt.tick(respond=True)
            rebuilt.tick(items=tuple(ItemControl(Role(each.role), each.text) for each in state.pending))
            found = rebuilt.one._state_report._latest
            assert found.answer_due or found.answering is not None, seed
            assert is_open or parts(found.pending) == parts(state.pending), seed
    assert opened > CONVERSATIONS // 10
