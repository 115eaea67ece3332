"""A server that learns a random conversation by a replay has the state of the server that was lost."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from contract.controls import Controls, ForgetControl, ItemControl, Part, Role
from contract.events import Committed, Event, SpeechStarted, StateChanged
from contract.parameters import REPORT_STATE
from contract.state import InputState, State
from frontend.failover.renumbering import Renumbering
from frontend.failover.replay_log import ReplayLog
from frontend.tick import TickIn, TickOut
from tests.scripted_engine import CONFIG, ScriptedEngine, settings

TICK_MS = 320
SILENCE, SPEECH = np.zeros(5120, np.int16), np.full(5120, 1000, np.int16)
WORDS = ("hello", "and this", "why")


class ReportingEngine(ScriptedEngine):
    """A server that reports its state."""

    def tick(self, tick: TickIn) -> TickOut:
        options = {name: value for name, value in tick.options.items() if name != REPORT_STATE}
        found = super().tick(replace(tick, options=options))
        one = self.conversation
        assert one is not None
        one.options = replace(one.options, report_state=True)
        before = len(one.events)
        one.finish_tick()
        return replace(found, events=[*found.events, *one.events[before:]])


class Bridge:
    """A conversation with one server, and its log."""

    def __init__(self, chance: random.Random, **options: object):
        self.engine = ReportingEngine(chance, CONFIG)
        self.log = ReplayLog(settings())
        self.options = options
        self.events: list[Event] = []

    def pass_tick(self, samples: np.ndarray = SILENCE, **controls: object) -> list[Event]:
        """Pass one tick and return its events."""
        is_first = self.engine.conversation is None
        tick = TickIn(samples.tobytes(), is_first, False, Controls(**controls), self.options if is_first else {})
        self.log.sent(tick)
        found = self.engine.tick(tick).events
        state = next((event.state for event in found if isinstance(event, StateChanged)), None)
        events = [event for event in found if not isinstance(event, StateChanged)]
        self.log.answered(events, state)
        self.events += events
        return events

    def move(self, chance: random.Random) -> None:
        """Replace the server: the next one learns the conversation by a replay and continues it."""
        log = self.log
        log.give_up_answer()
        replay = log.replay()
        assert log.state is not None
        other = ReportingEngine(chance, CONFIG)
        renumbering = Renumbering(replay, log.state, log.clock_ms, TICK_MS)
        *ticks, last = replay.ticks
        for tick in ticks:
            renumbering.learn(other.tick(tick).events)
        if replay.ignores_speech and (turn := renumbering.unknown_turn):
            last = replace(last, controls=replace(last.controls, forget=ForgetControl(turn, Part.USER)))
        renumbering.learn(other.tick(last).events)
        self.engine, self.learned = other, renumbering.client_state(renumbering.state)


def random_controls(chance: random.Random) -> dict[str, object]:
    """Return the controls of a tick, most often none."""
    match chance.randrange(24):
        case 0:
            return {"message": chance.choice(WORDS)}
        case 1:
            return {"items": (ItemControl(chance.choice(list(Role)), chance.choice(WORDS)),)}
        case 2:
            return {"commit": chance.choice([True, 100])}
        case 3:
            return {"listen": chance.choice([True, 100])}
        case 4:
            return {"respond": True}
        case 5:
            return {"cancel": True}
        case 6:
            return {"clear": True}
        case 7:
            return {"turn": {"detection": chance.choice(["manual", "server_vad"])}}
        case 8:
            return {"forget": ForgetControl(chance.randrange(1, 5), chance.choice(list(Part)))}
    return {}


def history_of(state: State) -> list[tuple[object, ...]]:
    """Return what a state's history holds; an empty answer says nothing to the next server."""
    entries = [entry for entry in state.entries if entry.text.strip() or entry.audio_start_ms is not None]
    return [(entry.turn, entry.role, entry.text, entry.audio_start_ms, entry.audio_end_ms) for entry in entries]


@pytest.mark.parametrize("first_seed", range(0, 400, 50))
def test_next_server_has_the_history_and_the_open_turn(first_seed: int):
    for seed in range(first_seed, first_seed + 50):
        chance = random.Random(seed)
        bridge = Bridge(chance, detection=chance.choice(["manual", "server_vad"]))
        speaks, spoken_ticks = False, 0
        for _ in range(chance.randrange(4, 40)):
            speaks = speaks if chance.random() < 0.7 else not speaks
            spoken_ticks = spoken_ticks + 1 if speaks else 0
            bridge.pass_tick(SPEECH if speaks else SILENCE, **random_controls(chance))
        bridge.move(chance)
        lost, learned = bridge.log.state, bridge.learned
        assert lost is not None
        assert history_of(learned) == history_of(lost), f"seed {seed}"
        if spoken_ticks == 1 and lost.awaits_silence:
            continue  # this speech began and was dealt with in the last tick: there is none to await
        assert learned.awaits_silence or not lost.awaits_silence, f"seed {seed}"
        if lost.input in (InputState.SPEECH, InputState.PUSHED, InputState.KEPT):
            assert (learned.input, learned.open_turn) == (InputState.PUSHED, lost.open_turn), f"seed {seed}"
            assert (learned.open_from_ms, learned.open_text) == (lost.open_from_ms, lost.open_text), f"seed {seed}"
        if lost.input is InputState.IDLE:
            assert learned.input in (InputState.IDLE, InputState.DEFAULT), f"seed {seed}"


def test_speech_after_a_commit_is_no_turn_after_a_move():
    chance = random.Random(0)
    bridge = Bridge(chance)
    for _ in range(4):
        bridge.pass_tick(SPEECH)
    bridge.pass_tick(SPEECH, commit=True)
    bridge.pass_tick(SPEECH)
    assert bridge.log.state is not None
    assert bridge.log.state.awaits_silence
    bridge.move(chance)
    before = len(bridge.events)
    for _ in range(3):
        bridge.pass_tick(SPEECH)
    for _ in range(4):
        bridge.pass_tick(SILENCE)
    assert not [event for event in bridge.events[before:] if isinstance(event, (SpeechStarted, Committed))]
    for samples in (*[SPEECH] * 3, *[SILENCE] * 4):
        bridge.pass_tick(samples)
    assert [event.type for event in bridge.events[before:] if isinstance(event, Committed)] == ["committed"]


def test_turn_kept_through_a_change_of_detection_is_kept_after_a_move():
    chance = random.Random(0)
    bridge = Bridge(chance)
    for _ in range(3):
        bridge.pass_tick(SPEECH)
    bridge.pass_tick(SPEECH, turn={"detection": "manual"})
    bridge.pass_tick(SPEECH)
    lost = bridge.log.state
    assert lost is not None
    assert lost.input is InputState.KEPT
    bridge.move(chance)
    assert bridge.learned.input is InputState.PUSHED
    events = bridge.pass_tick(SPEECH, commit=True)
    (committed,) = [event for event in events if isinstance(event, Committed)]
    assert committed.audio_start_ms is not None
    assert committed.audio_end_ms is not None
    span_ms = committed.audio_end_ms - committed.audio_start_ms
    assert span_ms == 6 * TICK_MS - (lost.open_from_ms or 0)


def test_refused_respond_is_not_repeated_on_another_server():
    chance = random.Random(0)
    bridge = Bridge(chance)
    bridge.pass_tick(message="hello")
    bridge.pass_tick(respond=True)
    for _ in range(30):
        bridge.pass_tick()
    assert bridge.engine.events["answer_done"] == 1
    assert not bridge.log.replay().respond


def test_answer_that_was_due_is_due_after_a_move():
    chance = random.Random(0)
    bridge = Bridge(chance, create_response=False)
    bridge.pass_tick(SPEECH)
    bridge.pass_tick(SPEECH, respond=True)
    assert bridge.log.replay().respond, "at the end of the user's turn"
    bridge.pass_tick(SPEECH, cancel=True)
    assert not bridge.log.replay().respond
