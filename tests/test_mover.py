"""A conversation on one server after the other: no tick is lost, and turn numbers and times stay the client's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from config import Settings, SettingsError
from contract.controls import Controls, ForgetControl, Part, TruncateControl
from contract.events import AnswerStarted, Committed, Event, Forgotten, StateChanged, Text, Transcript
from contract.parameters import REPORT_STATE
from contract.state import Entry, InputState, State
from frontend.failover.mover import Mover
from frontend.failover.part import add_to
from frontend.failover.renumbering import Renumbering
from frontend.failover.replay_log import Replay
from frontend.plugins import Plugins
from frontend.tick import TickError, TickIn, TickOut

TICK_BYTES = 10_240


class FakeLink:
    """Servers one after the other: each answers a number of ticks, then it is lost."""

    def __init__(self, *answers: int, why: str = "Triton does not answer"):
        self._answers, self._why = list(answers), why
        self.received: list[list[TickIn]] = []

    async def converse(self, sequence_id: int, ticks: AsyncIterator[TickIn]) -> AsyncIterator[TickOut | TickError]:
        left, mine = self._answers.pop(0), []
        self.received.append(mine)
        async for tick in ticks:
            mine.append(tick)
            if not left:
                raise TickError(self._why)
            left -= 1
            state = [StateChanged(at_ms=0, state=State())] if tick.start else []
            yield TickOut(b"", "", [Text(at_ms=320 * len(mine), text="heard"), *state])


async def ticks(count: int) -> AsyncIterator[TickIn]:
    for number in range(count):
        yield TickIn(bytes([number]) * TICK_BYTES, start=number == 0, end=number == count - 1)


def converse(link: Any, count: int, within_s: float = 5) -> list[TickOut]:
    settings = Settings.load(environ={}).with_values(bridge={"move_within_s": within_s})

    async def run() -> list[TickOut]:
        answers = Mover(link.converse, settings).converse(1, ticks(count))
        return [answer async for answer in answers if isinstance(answer, TickOut)]

    return asyncio.run(run())


def test_no_tick_is_lost_or_doubled_by_a_move():
    link = FakeLink(4, 1000)
    answers = converse(link, 10)
    assert len(answers) == 10
    assert [event.type for event in answers[4].events] == ["moved", "text"]
    assert [answer.events[-1].at_ms for answer in answers] == [320 * n for n in range(1, 11)]
    live = [tick.pcm[0] for tick in link.received[1] if tick.pcm[0]]
    assert live == list(range(1, 10)), "the ticks with an answer, which the detector hears again, and the others"
    assert [tick.start for tick in link.received[1]].count(True) == 1
    assert link.received[1][-1].end
    assert [mine[0].options[REPORT_STATE] for mine in link.received] == [True, True]


def test_client_never_receives_the_engines_state():
    for answer in converse(FakeLink(4, 1000), 10):
        assert not [event for event in answer.events if isinstance(event, StateChanged)]


@pytest.mark.parametrize(
    ("link", "attempts"),
    [
        pytest.param(lambda: FakeLink(0), 1, id="no tick was answered"),
        pytest.param(lambda: FakeLink(3, 4, 100), 2, id="the same tick fails again"),
        pytest.param(lambda: FakeLink(3, *[0] * 9), 3, id="no other server in time"),
    ],
)
def test_error_reaches_the_client_if_no_move_is_possible(link: Callable[[], FakeLink], attempts: int):
    made = link()
    with pytest.raises(TickError, match="Triton does not answer"):
        converse(made, 6, within_s=0.8)
    assert len(made.received) == attempts


def test_dialect_without_turns_cannot_move():
    settings = Settings.load(environ={}).with_values(bridge={"move_within_s": 5}, engine={"dialect": "sca"})
    with pytest.raises(SettingsError, match=r"bridge\.move_within_s is 5, expected 0: the dialect 'sca' has no turns"):
        add_to(Plugins(), settings)


@pytest.fixture
def moved() -> Renumbering:
    """Return a renumbering in which turns 5 and 6 of the client are 1 to 3 of the server, 6400 ms behind."""
    entries = [Entry(5, "user", "", 3200, 4800), Entry(5, "assistant", "yes"), Entry(6, "system", "be brief")]
    ticks = [TickIn(b"")] * 10
    found = Renumbering(Replay(ticks, entries, False, (), False), State(next_turn=8), clock_ms=9600, tick_ms=320)
    server = (Entry(1, "user", "", 40, 1640), Entry(2, "assistant", "yes"), Entry(3, "system", "be brief"))
    committed = [
        Committed(at_ms=1640, turn=1, audio_start_ms=40, audio_end_ms=1640),
        Committed(at_ms=1960, turn=2),
        Committed(at_ms=1960, turn=3),
    ]
    found.learn([*committed, StateChanged(at_ms=3200, state=State(server, next_turn=4))])
    return found


def test_numbers_and_times_of_events_are_the_clients(moved: Renumbering):
    events: list[tuple[Event, Event]] = [
        (Text(at_ms=3520, text="x"), Text(at_ms=9920, text="x")),
        (AnswerStarted(at_ms=3520, turn=4), AnswerStarted(at_ms=9920, turn=8)),
        (Forgotten(at_ms=3520, turn=3, part="answer"), Forgotten(at_ms=9920, turn=6, part="answer")),
        (AnswerStarted(at_ms=0, turn=0, out_of_band=True), AnswerStarted(at_ms=6400, turn=0, out_of_band=True)),
        (
            Committed(at_ms=3520, turn=5, audio_start_ms=3200, audio_end_ms=3500),
            Committed(at_ms=9920, turn=9, audio_start_ms=9600, audio_end_ms=9900),
        ),
        (
            Transcript(at_ms=3520, turns=[{"role": "user", "audio_start_ms": 40, "audio_end_ms": 1640}]),
            Transcript(at_ms=9920, turns=[{"role": "user", "audio_start_ms": 3200, "audio_end_ms": 4800}]),
        ),
    ]
    for server, client in events:
        assert moved.to_client(server) == client


def test_state_of_the_server_becomes_the_clients(moved: Renumbering):
    entries = (Entry(1, "user", "", 40, 1640), Entry(4, "user", "typed"))
    state = State(entries, input=InputState.SPEECH, open_turn=5, open_from_ms=3300, input_from_ms=3200, next_turn=6)
    assert moved.client_state(state) == State(
        (Entry(5, "user", "", 3200, 4800), Entry(8, "user", "typed")),
        input=InputState.SPEECH,
        open_turn=9,
        open_from_ms=9700,
        input_from_ms=9600,
        next_turn=10,
    )


@pytest.mark.parametrize(
    ("turn", "part", "expected"),
    [(5, Part.USER, 1), (5, Part.ANSWER, 2), (8, Part.ANSWER, 4), (2, Part.USER, 0), (7, Part.USER, 0)],
    ids=["user", "answer", "since the move", "evicted", "never a turn"],
)
def test_controls_name_the_servers_turns(moved: Renumbering, turn: int, part: Part, expected: int):
    forget = moved.to_server(Controls(forget=ForgetControl(turn, part))).forget
    assert forget is not None
    assert forget.turn == expected
    if part is Part.ANSWER:
        truncate = moved.to_server(Controls(truncate=TruncateControl(turn, 100))).truncate
        assert truncate is not None
        assert truncate.turn == expected
