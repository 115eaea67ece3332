"""Random conversations whose servers are lost one after the other: every tick is answered, in the client's terms."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest

from config import Settings
from contract.controls import Controls
from contract.events import Committed, Event, Interrupted, Moved, StateChanged
from frontend.failover import mover
from frontend.failover.mover import Mover
from frontend.tick import TickError, TickIn, TickOut
from tests.scripted_engine import CONFIG
from tests.test_replay_random import SILENCE, SPEECH, TICK_MS, ReportingEngine, random_controls

TICKS = 60


class LostServers:
    """Servers that are lost after a drawn number of live or replayed ticks."""

    def __init__(self, chance: random.Random):
        self._chance = chance
        self.count = 0

    async def converse(self, _: int, ticks: AsyncIterator[TickIn]) -> AsyncIterator[TickOut | TickError]:
        self.count += 1
        engine, left = ReportingEngine(self._chance, CONFIG), self._chance.randrange(5, 120)
        async for tick in ticks:
            if not left:
                raise TickError("Triton does not answer")
            left -= 1
            yield engine.tick(tick)


def converse(seed: int) -> tuple[list[TickOut], int]:
    """Hold a random conversation; returns its answers and the number of its servers."""
    chance = random.Random(seed)
    settings = Settings.load(environ={}).with_values(bridge={"move_within_s": 1000})
    servers, speaks = LostServers(chance), False

    async def ticks() -> AsyncIterator[TickIn]:
        nonlocal speaks
        for number in range(TICKS):
            speaks = speaks if chance.random() < 0.7 else not speaks
            controls = Controls(**random_controls(chance))
            yield TickIn((SPEECH if speaks else SILENCE).tobytes(), number == 0, number == TICKS - 1, controls)

    async def run() -> list[TickOut]:
        answers = Mover(servers.converse, settings).converse(1, ticks())
        return [answer async for answer in answers if isinstance(answer, TickOut)]

    return asyncio.run(asyncio.wait_for(run(), 60)), servers.count


@pytest.mark.parametrize("first_seed", range(0, 100, 25))
def test_conversation_continues_on_the_next_server(first_seed: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mover, "RETRY_S", 0.0)
    moves = 0
    for seed in range(first_seed, first_seed + 25):
        try:
            answers, servers = converse(seed)
        except TickError:
            continue  # the next server was lost with the same tick
        events: list[tuple[int, Event]] = []
        for number, answer in enumerate(answers):
            events += [(number, event) for event in answer.events]
        kinds = [event.type for _, event in events]
        assert len(answers) == TICKS, f"seed {seed}"
        assert kinds.count("moved") <= servers - 1
        moves += kinds.count("moved")
        assert not any(isinstance(event, StateChanged) for _, event in events)
        if "reset" not in kinds:
            assert all(0 <= event.at_ms <= (number + 1) * TICK_MS for number, event in events), f"seed {seed}"
        turns = [event.turn for _, event in events if isinstance(event, Committed)]
        assert len(set(turns)) == len(turns), f"seed {seed}: a turn is committed once"
        for number, event in events:
            if isinstance(event, Interrupted) and event.by == "move":
                assert any(isinstance(each, Moved) for each in answers[number].events), f"seed {seed}"
    assert moves > 5
