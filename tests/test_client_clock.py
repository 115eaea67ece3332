"""Ticks do not depend on how a client cut its sound."""

from __future__ import annotations

import pytest

from frontend.session.client_clock import ClientClock


@pytest.mark.parametrize("sizes", [[1] * 25, [3, 9, 1, 12], [25], [10, 10, 5]])
def test_the_framer_cuts_the_same_ticks_of_any_frames(sizes):
    data = bytes(range(25))
    framer, ticks, start = ClientClock(10), [], 0
    for size in sizes:
        ticks += framer.feed(data[start : start + size])
        start += size
    assert ticks == [data[:10], data[10:20]]
    assert framer.flush() == data[20:] + bytes(5)
    assert framer.flush() == bytes(10)
