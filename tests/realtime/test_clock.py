"""When a tick goes, on a loop whose time is the test's own."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine

import pytest

from frontend.realtime.clock import Clock, Planned

TICK = bytes(10_240)
SPEECH = b"\1" * 10_240


class Jump(selectors.SelectSelector):
    """Instead of waiting it puts the clock forward."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.now_s += max(0.0, timeout or 0.0)
        return super().select(0)


def run(play: Coroutine[None, None, None]) -> None:
    jump = Jump()
    loop = asyncio.SelectorEventLoop(jump)
    loop.time = lambda: jump.now_s
    try:
        loop.run_until_complete(play)
    finally:
        loop.close()


def clock() -> Clock:
    return Clock(tick_ms=320, keep_alive_s=10)


async def takes(one: Clock) -> tuple[Planned, float]:
    """The next tick, and how many seconds it took."""
    begun_s = asyncio.get_running_loop().time()
    tick = await asyncio.wait_for(one.next(), 2)
    return tick, asyncio.get_running_loop().time() - begun_s


def test_whole_ticks_go_as_fast_as_they_come():
    async def play() -> None:
        one = clock()
        await one.append(SPEECH * 5)
        for _ in range(5):
            tick, took_s = await takes(one)
            assert tick.pcm == SPEECH
            assert took_s < 0.1

    run(play())


def test_while_an_answer_is_given_they_go_as_it_is_heard():
    async def play() -> None:
        one = clock()
        one.is_active = one.is_answering = True
        await one.append(SPEECH * 4)
        begun_s = asyncio.get_running_loop().time()
        for _ in range(4):
            await takes(one)
        assert asyncio.get_running_loop().time() - begun_s > 0.9

    run(play())


def test_controls_share_a_tick_where_the_engine_takes_them_in_their_order():
    async def play() -> None:
        one = clock()
        for asked in ({"cancel": 1}, {"items": 1}, {"respond": 1}, {"cancel": 2}, {"items": 2}, {"items": 3}):
            one.ask(**asked)
        for asked in ({"cancel": 1, "items": 1, "respond": 1}, {"cancel": 2, "items": 2}, {"items": 3}):
            assert (await takes(one))[0].asked == asked

    run(play())


def test_where_nothing_goes_on_there_are_no_ticks():
    async def play() -> None:
        one = clock()
        await one.append(SPEECH)
        await takes(one)
        with pytest.raises(asyncio.TimeoutError):
            await takes(one)

    run(play())


def test_silence_comes_where_something_goes_on_and_no_sound_does():
    async def play() -> None:
        one = clock()
        one.is_active = True
        tick, _ = await takes(one)
        assert tick.pcm == TICK

    run(play())


@pytest.mark.parametrize("sound_comes", [False, True])
def test_what_is_written_comes_four_times_as_fast_as_speech_where_no_sound_comes(sound_comes: bool):
    async def play() -> None:
        one = clock()
        one.is_active = one.is_writing = True
        if sound_comes:
            await one.append(SPEECH)
        await takes(one)
        _, took_s = await takes(one)
        assert took_s == pytest.approx(0.32 + 0.25 if sound_comes else 0.08)

    run(play())


def test_sound_without_detection_waits_for_its_commit():
    async def play() -> None:
        one = clock()
        one.holds = one.is_active = True
        await one.append(SPEECH + SPEECH[:100])
        tick, _ = await takes(one)
        assert tick.pcm == TICK
        one.commit(b"", {"listen": True})
        first, last = (await takes(one))[0], (await takes(one))[0]
        assert first == (SPEECH, {"listen": True}, (0, len(SPEECH)))
        assert last == (SPEECH[:100].ljust(len(TICK), b"\0"), {"commit": True}, (len(SPEECH), 100))

    run(play())


def test_controls_do_not_wait_for_sound():
    async def play() -> None:
        one = clock()
        one.ask(respond=True)
        tick, took_s = await takes(one)
        assert tick == (TICK, {"respond": True}, None)
        assert took_s < 0.1

    run(play())


def test_controls_and_planned_sound_go_in_the_order_in_which_they_came_and_once():
    async def play() -> None:
        one = clock()
        one.ask(items="before")
        one.plan(SPEECH * 2, {"listen": True}, {"commit": True})
        one.ask(respond=True)
        asked = [(await takes(one))[0].asked for _ in range(4)]
        assert asked == [{"items": "before"}, {"listen": True}, {"commit": True}, {"respond": True}]
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(one.next(), 0.1)

    run(play())


def test_a_moment_of_the_ticks_is_known_in_the_microphones_own_sound():
    """Ticks of silence that were put in between are left out, and so is another sound; what was forgotten counts."""

    async def play() -> None:
        one = clock()
        one.ask(respond=True)
        await takes(one)  # 0 to 320 ms: silence
        await one.append(SPEECH * 2)
        await takes(one)  # 320 to 640
        await takes(one)  # 640 to 960
        one.plan(SPEECH, {}, {})
        await takes(one)  # 960 to 1280: an item's
        await one.append(SPEECH[:3200])
        one.clear()  # 100 ms
        one.holds = True
        await one.append(SPEECH[:6400])
        one.commit(SPEECH[:320], {})  # 210 ms, the rest of the tick is silence
        await takes(one)  # 1280 to 1600
        expected = {0: 0, 320: 0, 330: 10, 960: 640, 1200: 640, 1280: 740, 1400: 860, 1490: 950, 1600: 950}
        assert {at: one.spoken_ms(at) for at in expected} == expected

    run(play())
