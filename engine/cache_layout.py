"""Positions in a slot's two KV caches: the talker's prefix, and what an eviction removes. Free of torch."""

from __future__ import annotations

from typing import NamedTuple

TALKER_PREFIX = 5
"""Positions of the talker's prefix, which names the voice, before the codec frames of an answer."""


class Eviction(NamedTuple):
    """Positions that leave one of the caches: `leaving` of a slot's `length`, those after the first `kept`."""

    kept: int
    leaving: int
    length: int


class Evictions(NamedTuple):
    """The evictions of both caches of a conversation."""

    thinker: Eviction
    talker: Eviction
