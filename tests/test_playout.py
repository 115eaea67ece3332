"""The lag of a loudspeaker and its reduction, on a fake clock."""

from __future__ import annotations

import pytest

from frontend.pcm16.playout import BYTES_PER_SECOND, Lag, Playout

TICK_S = 0.32
SILENCE = bytes(int(TICK_S * BYTES_PER_SECOND))
SPEECH = b"\1" * len(SILENCE)


class Loudspeaker:
    """A playout and its clock."""

    def __init__(self, max_lag_s: float = 1.0):
        self.now_s = 0.0
        self.playout = Playout(max_lag_s, lambda: self.now_s)
        self.events: list[Lag] = []

    def hear(self, pcm: bytes, after_s: float = TICK_S) -> bytes:
        self.now_s += after_s
        sent, event = self.playout.put(pcm)
        if event:
            self.events.append(event)
        return sent


def test_nothing_is_left_out_without_a_lag():
    one = Loudspeaker()
    assert all(one.hear(SILENCE) == SILENCE for _ in range(50))
    assert one.events == []


def test_audio_faster_than_playback_is_no_lag():
    one = Loudspeaker()
    assert all(one.hear(SILENCE, after_s=0.01) == SILENCE for _ in range(50))
    assert one.events == []


def test_silence_is_left_out_after_a_stall_until_the_lag_is_gone():
    one = Loudspeaker()
    for _ in range(10):
        one.hear(SPEECH)
    one.now_s += 3.2  # the network stands still, and what came meanwhile comes at once
    burst = [one.hear(SPEECH, after_s=0.0) for _ in range(10)]
    assert burst == [SPEECH] * 10, "speech is never left out"
    assert one.playout.lag_s == pytest.approx(2.88 + TICK_S, abs=TICK_S)
    assert one.events[0].is_catching_up
    sent = sum(len(one.hear(SILENCE)) for _ in range(20)) / BYTES_PER_SECOND
    assert sent == pytest.approx(20 * TICK_S - 3.2, abs=0.35)
    assert one.playout.lag_s < 0.1
    assert one.events[-1] == Lag(pytest.approx(0, abs=100), is_catching_up=False)
    assert len(one.events) == 2
    assert one.hear(SILENCE) == SILENCE


def test_slow_network_without_bursts_is_no_lag():
    one = Loudspeaker()
    assert all(one.hear(SILENCE, after_s=0.5) == SILENCE for _ in range(50))
    assert one.events == []


def test_zero_permits_any_lag():
    one = Loudspeaker(max_lag_s=0)
    one.hear(SPEECH)
    one.now_s += 10
    assert all(one.hear(SILENCE, after_s=0.0) == SILENCE for _ in range(30))
    assert one.events == []


def test_silence_that_closed_a_tick_is_left_out_later():
    one = Loudspeaker()
    one.playout.owe(1000)
    assert one.hear(SPEECH) == SPEECH
    assert len(one.hear(SILENCE)) == len(SILENCE) - 1000
    assert one.hear(SILENCE) == SILENCE
