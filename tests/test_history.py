"""What is kept of a conversation, and what happens when nobody can read it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from config import Settings, SettingsError
from contract.controls import Controls
from contract.events import Text
from frontend.failover.mover import Mover
from frontend.failover.part import add_to
from frontend.failover.replay_log import ITEMS_AT_ONCE, Part, ReplayLog
from frontend.plugins import Plugins
from frontend.tick import TickError, TickIn, TickOut

TICK_BYTES = 10_240


@pytest.fixture
def history(settings: Settings) -> ReplayLog:
    return ReplayLog(settings.with_values(engine={"dialect": "turn", "context_s": 8}))


def pass_ticks(history: ReplayLog, count: int, *events: dict[str, Any], **parameters: Any) -> None:
    """Ticks of the bytes of their numbers; events with the last, parameters with the first."""
    for number in range(count):
        ticks = history.clock_ms // 320
        pcm = bytes([ticks % 256]) * TICK_BYTES
        start = not history.has_begun
        history.ask(TickIn.from_parameters(pcm, parameters if number == 0 else {}, 320, start))
        history.answer(list(events) if number == count - 1 else [])


def committed(turn: int, *span_ms: int) -> dict[str, Any]:
    span = dict(zip(("audio_start_ms", "audio_end_ms"), span_ms, strict=False))
    return {"type": "committed", "at_ms": 0, "turn": turn, **span}


def done(turn: int, text: str) -> list[dict[str, Any]]:
    return [
        {"type": "answer_started", "at_ms": 0, "turn": turn},
        {"type": "text", "at_ms": 0, "text": text[:2]},
        {"type": "answer_done", "at_ms": 0, "turn": turn, "text": text},
    ]


def what(history: ReplayLog) -> list[tuple[str, str, int]]:
    return [(part.role, part.text, len(part.sound)) for part in history.parts]


def test_a_reading_has_the_turns_to_the_sample_and_the_options(history: ReplayLog):
    pass_ticks(history, 6, committed(1, 130, 1700), *done(1, "hello"), voice="aiden", silence_duration_ms=700)
    items = json.dumps([{"role": "system", "text": "be brief"}, {"role": "user", "text": "typed"}])
    pass_ticks(history, 1, committed(2), committed(3), *done(3, "yes"), items=items, turn='{"threshold": 0.7}')
    pass_ticks(history, 9)
    reading = history.reading()
    first, *_ = reading.ticks
    assert first.start
    assert not any(tick.start or tick.end for tick in reading.ticks[1:])
    assert first.parameters == {
        "voice": "aiden", "silence_duration_ms": 700, "threshold": 0.7,
        "detection": "manual", "create_response": False, "listen": 130,
    }  # fmt: skip
    assert [tick.pcm[0] for tick in reading.ticks[:6]] == [0, 1, 2, 3, 4, 5]
    assert reading.ticks[5].parameters == {"commit": 1700 - 5 * 320}
    assert json.loads(reading.ticks[6].parameters["items"]) == [
        {"role": "assistant", "text": "hello"},
        {"role": "system", "text": "be brief"},
        {"role": "user", "text": "typed"},
        {"role": "assistant", "text": "yes"},
    ]
    assert json.loads(reading.ticks[7].parameters["turn"]) == {"detection": "server_vad", "create_response": True}
    assert [tick.pcm[0] for tick in reading.ticks[8:]] == list(range(8, 16)), "what the detector has heard last"
    assert [part.number for part in reading.parts] == [1, 1, 2, 3, 3]
    assert history.next_number == 4
    assert not reading.is_due


def test_an_answer_that_was_due_is_asked_for(history: ReplayLog):
    pass_ticks(history, 3, committed(1, 0, 900))
    assert history.reading().is_due
    pass_ticks(history, 1, {"type": "answer_started", "at_ms": 0, "turn": 1})
    assert not history.reading().is_due
    pass_ticks(history, 2)
    cut = history.give_up_answer()
    assert cut is not None
    assert (cut["turn"], cut["heard_ms"], cut["by"]) == (1, 960, "move")
    assert history.reading().is_due
    assert what(history) == [("user", "", 3)]
    assert history.give_up_answer() is None


def test_what_is_answered_out_of_band_is_no_part_of_it_and_ends_with_its_server(history: ReplayLog):
    apart = [{**event, "turn": 0, "out_of_band": True} for event in done(0, "yes")]
    pass_ticks(history, 1, *apart, out_of_band='{"instructions": "yes or no"}')
    assert history.give_up_answer() is None
    pass_ticks(history, 1, *apart[:2], out_of_band='{"instructions": "yes or no"}')
    cut = history.give_up_answer()
    assert cut is not None
    assert (cut["out_of_band"], cut["heard_text"], cut["by"]) == (True, "ye", "move")
    refused = {"type": "error", "code": "answer_active", "out_of_band": True}
    pass_ticks(history, 1, refused, out_of_band='{"instructions": "yes or no"}')
    pass_ticks(history, 1, out_of_band='{"cancel": true}')
    assert history.give_up_answer() is None
    assert what(history) == []
    assert not history.reading().is_due


def test_what_is_cut_or_forgotten_is_not_read(history: ReplayLog):
    pass_ticks(history, 1, committed(1), *done(1, "one two"), message="first")
    heard = {"at_ms": 0, "turn": 1, "heard_text": "one"}
    pass_ticks(history, 1, {"type": "truncated", **heard})
    assert what(history) == [("user", "first", 0), ("assistant", "one", 0)]
    started, text, _ = done(2, "never heard")
    pass_ticks(history, 1, committed(2), started, text, message="second")
    pass_ticks(history, 1, {"type": "interrupted", "at_ms": 0, "turn": 2, "by": "speech", "heard_text": "ne"})
    assert what(history)[2:] == [("user", "second", 0), ("assistant", "ne", 0)]
    pass_ticks(history, 1, {"type": "forgotten", "at_ms": 0, "turn": 1, "part": "user"})
    pass_ticks(history, 1, {"type": "turns_dropped", "at_ms": 0, "turn": 2, "count": 1, "left": 1})
    assert what(history) == [("assistant", "one", 0)]
    pass_ticks(history, 1, {"type": "reset", "at_ms": 0})
    assert what(history) == []
    assert history.clock_ms == 320, "the clock begins with the tick that asked for it"
    assert len(history.reading().ticks) == 2, "a START, and that tick"


def test_no_more_is_kept_than_a_context(history: ReplayLog):
    """8 s: 25 ticks."""
    for turn in range(1, 5):
        begin_ms = history.clock_ms
        pass_ticks(history, 1, {"type": "speech_started", "at_ms": begin_ms})
        pass_ticks(history, 9, committed(turn, begin_ms, begin_ms + 3200), *done(turn, "fine"))
    assert what(history) == [("assistant", "fine", 0), *[("user", "", 10), ("assistant", "fine", 0)] * 2]
    pass_ticks(history, 60)
    assert len(history._recent) == 8 + 800 // 320 + 1, "what a turn may begin in"
    pass_ticks(history, 60, listen=True)
    assert len(history._recent) == 25, "of a turn that is open, a context"
    late = Part("user", span_ms=(0, 320))
    pass_ticks(history, 1, committed(9, 0, history.clock_ms))
    assert history.reading().parts[-1].number != 9, "a turn whose sound is gone is none"
    assert late.side == "user"


def test_an_item_asks_for_no_answer_and_a_message_does(history: ReplayLog):
    item = json.dumps([{"role": "user", "text": "for your information"}])
    pass_ticks(history, 1, committed(1), items=item)
    assert not history.reading().is_due
    pass_ticks(history, 1, committed(2), message="and this?", turn='{"create_response": false}')
    assert history.reading().is_due, "a message is always answered"
    pass_ticks(history, 1, *done(2, "yes"))
    pass_ticks(history, 1, committed(3, 960, 1280))
    assert not history.reading().is_due


def test_an_item_that_waits_for_the_end_of_an_answer_is_added_later(history: ReplayLog):
    started, *_ = done(1, "long")
    pass_ticks(history, 1, committed(1), started, message="tell me")
    item = {"role": "system", "text": "be brief"}
    pass_ticks(history, 1, items=json.dumps([item]))
    history.give_up_answer()
    assert history.reading().waiting == [item]
    on_its_way = TickIn.from_parameters(b"", {"items": json.dumps([{"role": "user", "text": "too"}])}, 320)
    history.ask(on_its_way)
    assert history.reading().waiting == [item], "the other one's tick comes again"


def test_a_respond_on_its_way_is_not_asked_for_twice(history: ReplayLog):
    pass_ticks(history, 1, committed(1, 0, 320), turn='{"create_response": false}')
    history.ask(TickIn(b"", controls=Controls(respond=True)))
    assert not history.reading().is_due
    history.answer([])
    assert history.reading().is_due


def test_a_reset_keeps_what_is_asked_with_it(history: ReplayLog):
    pass_ticks(history, 3, committed(1, 0, 900))
    pass_ticks(history, 1, {"type": "reset", "at_ms": 0}, committed(1), reset=True, message="anew")
    assert what(history) == [("user", "anew", 0)]


def test_a_turn_that_is_too_long_is_none(history: ReplayLog):
    pass_ticks(history, 3, committed(1, 0, 900))
    pass_ticks(history, 1, {"type": "error", "at_ms": 0, "code": "turn_too_long", "message": "it is dropped"})
    assert what(history) == []
    assert not history.reading().is_due


def test_many_messages_are_read_in_portions(history: ReplayLog):
    for turn in range(1, 21):
        pass_ticks(history, 1, committed(turn), *done(turn, f"answer {turn}"), message=f"message {turn}")
    items = [json.loads(tick.parameters["items"]) for tick in history.reading().ticks if "items" in tick.parameters]
    assert [len(each) for each in items] == [ITEMS_AT_ONCE, ITEMS_AT_ONCE, 8]
    assert items[0][0] == {"role": "user", "text": "message 1"}


class FakeLink:
    """Servers one after the other: each answers so many ticks, then it is gone."""

    def __init__(self, *answers: int, why: str = "Triton does not answer"):
        self._answers, self._why = list(answers), why
        self.asked: list[list[TickIn]] = []

    async def converse(self, sequence_id: int, ticks: AsyncIterator[TickIn]) -> AsyncIterator[TickOut | TickError]:
        left, mine = self._answers.pop(0), []
        self.asked.append(mine)
        async for tick in ticks:
            mine.append(tick)
            if not left:
                raise TickError(self._why)
            left -= 1
            yield TickOut(b"", "", [Text(at_ms=320 * len(mine), text="heard")])


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
    live = [tick.pcm[0] for tick in link.asked[1] if tick.pcm[0]]
    assert live == list(range(1, 10)), "the four that were answered, which its detector hears again, and the others"
    assert [tick.start for tick in link.asked[1]].count(True) == 1
    assert link.asked[1][-1].end


@pytest.mark.parametrize(
    ("link", "attempts"),
    [
        pytest.param(lambda: FakeLink(0), 1, id="nothing was said yet"),
        pytest.param(lambda: FakeLink(3, 4, 100), 2, id="it fails again with the same tick"),
        pytest.param(lambda: FakeLink(3, *[0] * 9), 3, id="no other server in time"),
    ],
)
def test_where_there_is_no_other_try_the_client_is_told(link: Callable[[], FakeLink], attempts: int):
    made = link()
    with pytest.raises(TickError, match="Triton does not answer"):
        converse(made, 6, within_s=0.8)
    assert len(made.asked) == attempts


def test_a_dialect_without_turns_cannot_move():
    settings = Settings.load(environ={}).with_values(bridge={"move_within_s": 5}, engine={"dialect": "sca"})
    with pytest.raises(SettingsError, match=r"bridge\.move_within_s is 5, expected 0: the dialect 'sca' has no turns"):
        add_to(Plugins(), settings)
