"""The log of a conversation and the replay that another server learns it by."""

from __future__ import annotations

import pytest

from config import Settings
from contract.controls import Controls, ItemControl, Role
from contract.events import AnswerStarted, Event, Reset, Text
from contract.parameters import MAX_ITEMS, REPORT_STATE
from contract.state import Entry, InputState, State
from frontend.failover.replay_log import LEAD_TICKS, QUIET, Replay, ReplayLog
from frontend.tick import TickIn

TICK_BYTES = 10_240
BEFORE_TICKS = 3  # 800 ms of padding and silence, and 0 ms until an interruption


@pytest.fixture
def log(settings: Settings) -> ReplayLog:
    return ReplayLog(settings.with_values(engine={"dialect": "turn", "context_s": 8}))


def pass_ticks(log: ReplayLog, count: int, state: State | None = None, *events: Event, **options: object) -> None:
    """Pass ticks of the bytes of their numbers; state and events with the last, options with START."""
    for number in range(count):
        ticks = log.clock_ms // 320
        log.sent(TickIn(bytes([ticks % 256]) * TICK_BYTES, start=not ticks, options=options))
        is_last = number == count - 1
        log.answered(events if is_last else (), state if is_last else None)


def audio_of(replay: Replay) -> list[int]:
    """Return the number in the last byte of each tick; silence has 0."""
    return [tick.pcm[-1] for tick in replay.ticks]


def test_replay_has_the_turns_to_the_sample_and_the_options(log: ReplayLog):
    spoken = Entry(1, "user", "", 130, 1700)
    texts = [("assistant", "hello"), ("system", "be brief"), ("user", "typed"), ("assistant", "yes")]
    entries = (spoken, *(Entry(turn, role, text) for turn, (role, text) in zip((1, 2, 3, 3), texts, strict=True)))
    pass_ticks(log, 6, State((spoken,), answer_due=True), voice="aiden", silence_duration_ms=700)
    state = State(entries, input_from_ms=1700, turn_options={"threshold": 0.7}, next_turn=4)
    pass_ticks(log, 10, state)
    replay = log.replay()
    first, *others = replay.ticks
    assert first.start
    assert not any(tick.start or tick.end for tick in others)
    assert first.options == {
        "voice": "aiden", "silence_duration_ms": 700, "threshold": 0.7, **QUIET, REPORT_STATE: True,
    }  # fmt: skip
    assert first.controls == Controls(listen=130)
    assert replay.ticks[5].controls == Controls(commit=1700 - 5 * 320)
    assert replay.ticks[6].controls.items == tuple(ItemControl(Role(role), text) for role, text in texts)
    assert replay.ticks[7].controls.turn == {"detection": "server_vad"}
    assert audio_of(replay) == [0, 1, 2, 3, 4, 5, 0, 0, *range(16 - LEAD_TICKS, 16)]
    assert replay.ticks[8].controls == Controls(clear=True)
    assert replay.ticks[-1].controls == Controls(turn={"create_response": True})
    assert replay.entries == list(entries)
    assert not replay.respond


def test_answer_in_progress_is_given_up_and_requested_again(log: ReplayLog):
    spoken = Entry(1, "user", "", 0, 900)
    pass_ticks(log, 3, State((spoken,), answer_due=True))
    assert log.replay().respond
    pass_ticks(log, 1, State((spoken,), answering=1), AnswerStarted(at_ms=960, turn=1))
    pass_ticks(log, 2)
    interrupted = log.give_up_answer()
    assert interrupted is not None
    assert (interrupted.turn, interrupted.heard_ms, interrupted.by) == (1, 960, "move")
    assert log.replay().respond
    assert log.replay().entries == [spoken]
    assert log.give_up_answer() is None


def test_out_of_band_answer_ends_with_its_server(log: ReplayLog):
    pass_ticks(log, 1, State(out_of_band=True, answer_due=True))
    events = AnswerStarted(at_ms=0, turn=0, out_of_band=True), Text(at_ms=0, text="ye", out_of_band=True)
    pass_ticks(log, 1, State(out_of_band=True, answering=0), *events)
    interrupted = log.give_up_answer()
    assert interrupted is not None
    assert (interrupted.out_of_band, interrupted.heard_text, interrupted.by) == (True, "ye", "move")
    assert not log.replay().respond
    assert log.give_up_answer() is None


def test_refused_respond_is_not_requested_from_another_server(log: ReplayLog):
    """The engine's state has no answer due: the refusal needs no attention of the bridge."""
    log.sent(TickIn(bytes(TICK_BYTES), start=True, controls=Controls(respond=True)))
    log.answered([], State((Entry(1, "user", "hello"), Entry(1, "assistant", "yes"))))
    assert not log.replay().respond


def test_respond_without_an_answer_is_sent_again_only_with_its_tick(log: ReplayLog):
    pass_ticks(log, 1, State((Entry(1, "user", "hello"),)))
    log.sent(TickIn(b"", controls=Controls(respond=True)))
    assert not log.replay().respond
    assert [tick.controls.respond for tick in log.unanswered] == [True]


def test_audio_is_kept_for_open_turns_and_for_turns_of_the_history(log: ReplayLog):
    """The context of 8 s holds 25 ticks."""
    pass_ticks(log, 60, State())
    assert len(log._recent) == LEAD_TICKS + 1 + BEFORE_TICKS
    pass_ticks(log, 1, State(input=InputState.SPEECH, open_turn=1, open_from_ms=58 * 320))
    pass_ticks(log, 9)
    assert len(log._recent) == 12 + LEAD_TICKS + 1
    spoken = Entry(1, "user", "", 58 * 320, 70 * 320)
    pass_ticks(log, 1, State((spoken,), input_from_ms=70 * 320))
    pass_ticks(log, 1, State((spoken,), input=InputState.PUSHED, open_turn=2, open_from_ms=71 * 320))
    pass_ticks(log, 60)
    assert len(log._recent) == 25
    assert audio_of(log.replay())[:12] == list(range(58, 70))
    pass_ticks(log, 1, State())
    assert log._turns == {}


def test_turn_whose_audio_is_lost_is_left_out(log: ReplayLog):
    pass_ticks(log, 60, State())
    pass_ticks(log, 1, State((Entry(1, "user", "", 0, 640), Entry(1, "assistant", "yes"))))
    assert log.replay().entries == [Entry(1, "assistant", "yes")]


def test_pending_messages_follow_the_replay(log: ReplayLog):
    pass_ticks(log, 1, State(pending=(Entry(0, "system", "be brief"),), answering=1))
    log.give_up_answer()
    assert log.replay().items == (ItemControl(Role.SYSTEM, "be brief"),)


def test_reset_begins_the_clock_with_its_tick(log: ReplayLog):
    pass_ticks(log, 3, State((Entry(1, "user", "", 0, 900),)))
    pass_ticks(log, 1, State((Entry(1, "user", "again"),)), Reset(at_ms=0))
    assert log.clock_ms == 320
    replay = log.replay()
    assert replay.entries == [Entry(1, "user", "again")]
    assert audio_of(replay) == [0, 0, 3]


def test_many_messages_are_sent_in_portions(log: ReplayLog):
    pass_ticks(log, 1, State(tuple(Entry(turn, "user", f"message {turn}") for turn in range(1, 41))))
    items = [tick.controls.items for tick in log.replay().ticks if tick.controls.items]
    assert [len(each) for each in items] == [MAX_ITEMS, MAX_ITEMS, 8]
    assert items[0][0] == ItemControl(Role.USER, "message 1")


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (State(input_from_ms=19 * 320 + 160), [19]),
        (State(input_from_ms=20 * 320), [0]),
        (State(input=InputState.DEFAULT, open_from_ms=18 * 320, open_turn=1, input_from_ms=18 * 320), [18, 19]),
        (State(input=InputState.SPEECH, open_from_ms=18 * 320 + 20, open_turn=1), [18, 19]),
    ],
    ids=["used until within a tick", "all used", "default turn", "speech"],
)
def test_open_audio_is_replayed_without_what_a_turn_has_used(log: ReplayLog, state: State, expected: list[int]):
    pass_ticks(log, 20, state)
    replay = log.replay()
    assert audio_of(replay) == [0, *expected]
    unused_ms = max(state.input_from_ms, state.open_from_ms or 0)
    used = 2 * 16 * max(0, unused_ms - (20 - len(expected)) * 320)
    assert not any(replay.ticks[1].pcm[:used])
    assert all(replay.ticks[1].pcm[used:])


def test_turn_by_hand_begins_at_its_millisecond_with_what_was_typed(log: ReplayLog):
    options = {"detection": "manual"}
    state = State(input=InputState.PUSHED, open_turn=1, open_from_ms=700, open_text="and this", turn_options=options)
    pass_ticks(log, 4, state)
    detection, first, second = log.replay().ticks
    assert detection.controls.turn == {"detection": "manual"}
    assert first.controls == Controls(clear=True, listen=700 - 640)
    assert second.controls == Controls(message="and this", turn={"create_response": True})
    pass_ticks(log, 40)
    assert log.replay().ticks[1].controls.listen is True, "the turn is longer than the audio that is kept"


def test_speech_that_was_dealt_with_is_committed_and_removed(log: ReplayLog):
    """So that the next server's detector also awaits its end."""
    pass_ticks(log, 20, State((Entry(1, "user", "hi"),), input_from_ms=20 * 320, awaits_silence=True))
    replay = log.replay()
    assert replay.ignores_speech
    assert audio_of(replay)[2:] == [17, 18, 19]
    assert [tick.controls.commit for tick in replay.ticks[-3:]] == [False, True, False]
