"""Ticks of a client that streams its audio."""

from __future__ import annotations

import pytest

from frontend.session.client_clock import ClientClock


@pytest.mark.parametrize("sizes", [[1] * 25, [3, 9, 1, 12], [25], [10, 10, 5]])
def test_ticks_are_independent_of_the_clients_frames(sizes):
    data = bytes(range(25))
    clock, ticks, start = ClientClock(10), [], 0
    for size in sizes:
        ticks += clock.feed(data[start : start + size])
        start += size
    assert ticks == [data[:10], data[10:20]]
    assert clock.flush() == data[20:] + bytes(5)
    assert clock.flush() == bytes(10)
