"""The Realtime protocol's clock: which tick is due when. The test sets the time."""

from __future__ import annotations

import asyncio

import pytest

from contract.controls import Controls, ItemControl, Role
from frontend.session.server_clock import DueTick, Pace, ServerClock

SILENCE = bytes(10_240)  # a tick
SPEECH = b"\1" * 10_240
KEEP_ALIVE_S = 10.0


class Timed:
    """A clock and the time that it reads."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.clock = ServerClock(tick_ms=320, keep_alive_s=KEEP_ALIVE_S, now=lambda: self.now_s)

    def append(self, pcm: bytes) -> None:
        asyncio.run(self.clock.append(pcm))

    def next(self) -> tuple[DueTick, float]:
        """Return the next tick and the seconds until it was due."""
        begun_s = self.now_s
        while not isinstance(found := self.clock.poll(), DueTick):
            assert found is not None
            self.now_s += found
        return found, self.now_s - begun_s

    def expect_idle(self) -> None:
        """Assert that the next tick only keeps the conversation alive."""
        tick, waited_s = self.next()
        assert tick == DueTick(SILENCE)
        assert waited_s >= KEEP_ALIVE_S


@pytest.fixture
def timed() -> Timed:
    return Timed()


def test_whole_ticks_of_sound_are_due_at_once(timed: Timed):
    timed.append(SPEECH * 5)
    for _ in range(5):
        tick, waited_s = timed.next()
        assert tick.pcm == SPEECH
        assert waited_s == 0


def test_sound_during_a_spoken_answer_is_sent_at_the_pace_of_playback(timed: Timed):
    timed.clock.follow(Pace.SPEAKING, holds=False)
    timed.append(SPEECH * 4)
    waits = [timed.next()[1] for _ in range(4)]
    assert waits == pytest.approx([0, 0.32, 0.32, 0.32])


def test_controls_share_a_tick_if_the_engine_applies_them_in_the_order_of_the_requests(timed: Timed):
    one, two = (ItemControl(Role.USER, text) for text in ("one", "two"))
    for requested in ("cancel", "items", "respond", "cancel", "items"):
        timed.clock.request(**{requested: (one,) if requested == "items" else True})
    timed.clock.request(items=(two,))
    expected = [Controls(cancel=True, items=(one,), respond=True), Controls(cancel=True, items=(one,))]
    assert [timed.next()[0].controls for _ in range(3)] == [*expected, Controls(items=(two,))]


def test_idle_clock_only_keeps_the_conversation_alive(timed: Timed):
    timed.append(SPEECH)
    timed.next()
    timed.expect_idle()


def test_silence_is_sent_while_the_conversation_is_active_without_sound(timed: Timed):
    timed.clock.follow(Pace.LISTENING, holds=False)
    tick, waited_s = timed.next()
    assert tick.pcm == SILENCE
    assert waited_s == 0


@pytest.mark.parametrize("sound_comes", [False, True])
def test_text_answer_is_four_times_as_fast_as_speech_if_no_sound_comes(timed: Timed, sound_comes: bool):
    timed.clock.follow(Pace.WRITING, holds=False)
    if sound_comes:
        timed.append(SPEECH)
    timed.next()
    assert timed.next()[1] == pytest.approx(0.32 + 0.25 if sound_comes else 0.08)


def test_sound_without_detection_waits_for_its_commit(timed: Timed):
    one = timed.clock
    one.follow(Pace.LISTENING, holds=True)
    timed.append(SPEECH + SPEECH[:100])
    assert timed.next()[0].pcm == SILENCE
    one.commit(b"", Controls(listen=True))
    first, last = timed.next()[0], timed.next()[0]
    assert first == (SPEECH, Controls(listen=True), (0, len(SPEECH)))
    assert last == (SPEECH[:100].ljust(len(SILENCE), b"\0"), Controls(commit=True), (len(SPEECH), 100))


def test_controls_do_not_wait_for_sound(timed: Timed):
    timed.clock.request(respond=True)
    assert timed.next() == (DueTick(SILENCE, Controls(respond=True)), 0)


def test_controls_and_committed_sound_keep_their_order_and_are_sent_once(timed: Timed):
    one = timed.clock
    one.request(cancel=True)
    one.send_whole(SPEECH * 2, Controls(listen=True), Controls(commit=True))
    one.request(respond=True)
    found = [timed.next()[0].controls for _ in range(4)]
    assert found == [Controls(cancel=True), Controls(listen=True), Controls(commit=True), Controls(respond=True)]
    timed.expect_idle()


def test_time_of_the_ticks_maps_to_the_microphones_own_sound(timed: Timed):
    """Ticks of inserted silence and of another sound are not counted; cleared sound is."""
    one = timed.clock
    one.request(respond=True)
    timed.next()  # 0 to 320 ms: silence
    timed.append(SPEECH * 2)
    timed.next()  # 320 to 640
    timed.next()  # 640 to 960
    one.send_whole(SPEECH)
    timed.next()  # 960 to 1280: sound of an item
    timed.append(SPEECH[:3200])
    one.clear()  # 100 ms
    one.follow(Pace.IDLE, holds=True)
    timed.append(SPEECH[:6400])
    one.commit(SPEECH[:320])  # 210 ms, the rest of the tick is silence
    timed.next()  # 1280 to 1600
    expected = {0: 0, 320: 0, 330: 10, 960: 640, 1200: 640, 1280: 740, 1400: 860, 1490: 950, 1600: 950}
    assert {at: one.microphone_ms(at) for at in expected} == expected


def test_waiting_reader_gets_a_tick_that_becomes_due_by_a_change(timed: Timed):
    async def play() -> None:
        reader = asyncio.create_task(timed.clock.next())
        await asyncio.sleep(0)
        timed.clock.request(respond=True)
        assert (await reader).controls == Controls(respond=True)

    asyncio.run(play())


def test_append_waits_while_a_minute_of_sound_has_not_been_sent(timed: Timed):
    async def play() -> None:
        await timed.clock.append(SPEECH * 188)
        more = asyncio.create_task(timed.clock.append(SPEECH))
        await asyncio.sleep(0)
        assert not more.done()
        while timed.clock.held_ms > 30_000:
            await timed.clock.next()
        await more

    asyncio.run(play())
