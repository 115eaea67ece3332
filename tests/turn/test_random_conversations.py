"""Random conversations of the state machine, without a model: what holds after every tick, whatever a client sends."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from contract.controls import (
    Controls,
    ForgetControl,
    ItemControl,
    OutOfBandControl,
    Part,
    Role,
    TruncateControl,
)
from contract.events import (
    AnswerDone,
    AnswerStarted,
    Committed,
    Error,
    InputDropped,
    Interrupted,
    SpeechStarted,
    SpeechStopped,
    StateChanged,
    event_of,
)
from contract.state import InputState
from engine.turn.history import OUT_OF_BAND, Answer, Entry, Message, UserAudio, UserText
from tests.turn_machine import CONFIG, END, OPENING, TICK, conversation, expect_lengths

CONVERSATIONS = 200
CONTEXTS = [(2000, 1900), (400, 200), (330, 320), (220, 210), (140, 130)]  # positions of thinker and talker
TURN_CHANGES = [
    {"detection": "manual"},
    {"detection": "server_vad"},
    {"create_response": False},
    {"interrupt": False},
    {"speech": False},
    {"threshold": 7},
]


def random_controls(chance: random.Random, turns: int) -> Controls:
    """Draw the controls of a tick: most have none, some have several."""

    def text() -> str:
        return "x" * chance.choice([1, 20, 120, 230])

    def turn() -> int:
        return chance.randint(0, turns)

    draws = {
        "turn": lambda: chance.choice(TURN_CHANGES),
        "cancel": lambda: True,
        "clear": lambda: True,
        "truncate": lambda: TruncateControl(turn(), chance.choice([0, 80, 500])),
        "forget": lambda: ForgetControl(turn(), chance.choice(list(Part))),
        "items": lambda: tuple(ItemControl(chance.choice(list(Role)), text()) for _ in range(chance.randint(1, 3))),
        "listen": lambda: chance.choice([True, 100, 320]),
        "message": text,
        "commit": lambda: chance.choice([True, 10, 200]),
        "respond": lambda: True,
        "out_of_band": lambda: chance.choice(
            [OutOfBandControl(), OutOfBandControl(text()), OutOfBandControl("", {}, True)]
        ),
        "transcript": lambda: True,
    }
    return Controls(**{name: draw() for name, draw in draws.items() if chance.random() < 0.05})


def positions(entry: Entry) -> int:
    """Return the positions of an entry that is prefilled completely, in the toy chat template."""
    end = len(CONFIG.chat.close)
    match entry:
        case UserAudio():
            return 2 + 1 + entry.audio_tokens + 1 + len(entry.typed) + end
        case UserText() | Message():
            return 1 + len(entry.text) + end
        case Answer():
            return len(OPENING) + len(entry.tokens) + end - len(entry.closing)
    raise TypeError(entry)


class RandomConversation:
    """A conversation, and what its client has seen."""

    def __init__(self, seed: int, **config: int):
        """Draw a conversation; `config`: fields of `TurnConfig` that are not drawn."""
        self.chance = chance = random.Random(seed)
        thinker, talker = chance.choice(CONTEXTS)
        drawn = {
            "thinker_positions": thinker,
            "talker_positions": talker,
            "window_frames": chance.choice([96, 160, 800]),
            "stops_when_full": chance.random() < 0.2,
        }
        self.one = conversation(
            replace(CONFIG, **{**drawn, **config}),
            report_state=True,
            detection=chance.choice(["server_vad", "manual"]),
            create_response=chance.random() < 0.7,
            interrupt=chance.random() < 0.7,
            interrupt_after_ms=chance.choice([0, 300]),
            silence_duration_ms=chance.choice([96, 500]),
            answer_frames=chance.choice([6, 20, 80]),
        )
        self.is_speaking = self.hears_speech = False
        self.probabilities: list[float] = []  # probabilities of speech in the latest tick
        self.answering: int | None = None
        self.committed: set[int] = set()

    def tick(self) -> None:
        chance, one = self.chance, self.one
        self.probabilities = []
        for _ in range(10):
            self.is_speaking ^= chance.random() < 0.04
            self.probabilities.append(0.9 if self.is_speaking else 0.0)
        windows = self.probabilities if one.detects_turns else []
        opened = one.input.open.number if one.input.open and one.input.is_used else None
        one.advance(TICK, self.draw_controls(), windows)
        one.take_evictions()
        self.prefill()
        if decode := one.next_decode():
            assert decode.thinker_start == one.thinker_length
            tokens = [chance.choice([30, 31, 32, END if chance.random() < 0.3 else 33]) for _ in range(4)]
            codes = [512 if chance.random() < 0.05 else 1 for _ in range(4)]
            one.decoded(tokens if decode.emits_text else [], codes if decode.emits_frames else [])
        one.finish_tick()
        self.expect_invariants()
        if opened and not (one.input.open and one.input.open.number == opened):
            ends = [e.turn for e in one.events if isinstance(e, (Committed, InputDropped))]
            assert opened in ends, "a turn of the user ends with an event"
        for event in one.events:
            self.note(event)

    def draw_controls(self) -> Controls:
        return random_controls(self.chance, self.one.history.next_turn)

    def prefill(self) -> None:
        """Prefill a part of what is queued, or all of it; windows of a turn again, as its last clip may require."""
        one, window = self.one, self.one.config.window_frames
        for _ in range(self.chance.choice([0, 1, 2, 99, 99])):
            chunk = one.next_chunk
            if chunk and chunk.clip and chunk.clip.ends_turn and self.chance.random() < 0.3:
                one.prefill_again(chunk.clip.turn_first + window * self.chance.randrange(3))
                expect_lengths(one.history)
            room = one.config.thinker_positions, one.config.talker_positions
            if (prefill := one.next_prefill()) is None:
                return
            length = len(prefill.chunk.tokens)
            assert prefill.thinker_start + length == one.thinker_length <= room[0]
            assert one.history.talker_length + one.history.spoken <= room[1]

    def expect_invariants(self) -> None:
        one, history = self.one, self.one.history
        expect_lengths(history)
        turns = [entry.turn for entry in history.entries]
        is_out_of_band = one.answers.current is not None and one.answers.current.answer.turn == OUT_OF_BAND
        assert OUT_OF_BAND not in turns or (is_out_of_band and history.turns[-1] == OUT_OF_BAND)
        assert len(history.turns) == len([1 for a, b in zip([None, *turns], turns, strict=False) if a != b])
        assert (one.input.open is not None) == (one.input.state not in (InputState.IDLE, InputState.OVERFLOWED))
        assert not (one.input.open and one.answers.current), "a turn is open only while no answer is due"
        opened = [e for e in history.entries if isinstance(e, UserAudio) and e.span_ms is None]
        assert opened in ([], [one.input.open.entry] if one.input.open else [])
        assert one.oldest_frame <= one.clock
        for entry in history.entries:
            is_current = one.answers.current is not None and one.answers.current.answer is entry
            is_complete = not one.queue.holds(entry.turn) and entry not in opened and not is_current
            assert not is_complete or entry.thinker == positions(entry)
        assert history.spoken == 0 or one.answers.in_progress

    def note(self, event) -> None:
        """Assert that a client can follow the events."""
        assert event_of(event.to_json()) == event
        match event:
            case SpeechStarted():
                assert not self.hears_speech
                self.hears_speech = True
            case SpeechStopped():
                assert self.hears_speech
                self.hears_speech = False
            case Committed():
                assert event.turn not in self.committed
                assert event.audio_start_ms is None or event.audio_start_ms < event.audio_end_ms
                self.committed.add(event.turn)
            case InputDropped():
                assert event.turn not in self.committed
            case AnswerStarted():
                assert self.answering is None
                self.answering = event.turn
            case AnswerDone():
                assert self.answering == event.turn
                self.answering = None
            case Interrupted():
                assert self.answering in (None, event.turn), "an answer may be interrupted before it begins"
                self.answering = None
            case Error():
                assert event.message
            case StateChanged():
                assert event is self.one.events[-1]
                assert event.state.answering == self.answering


def test_history_and_events_are_consistent_after_every_tick():
    """The lengths of the caches are the sums of the entries, out-of-band entries are the last and leave."""
    for seed in range(CONVERSATIONS):
        one = RandomConversation(seed)
        for _ in range(one.chance.randint(10, 54)):
            one.tick()


@pytest.mark.long
def test_history_and_events_are_consistent_in_many_conversations():
    for seed in range(CONVERSATIONS, 40 * CONVERSATIONS):
        one = RandomConversation(seed)
        for _ in range(one.chance.randint(10, 54)):
            one.tick()
