"""Conversations without a socket and without an engine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.realtime.talk import Silent, Talk


@pytest.fixture
def talk() -> Iterator[Talk]:
    one = Talk()
    yield one
    one.loop.close()


@pytest.fixture
def call() -> Iterator[Talk]:
    one = Talk(Silent())
    yield one
    one.loop.close()
