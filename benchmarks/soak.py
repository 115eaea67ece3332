"""Hours of conversations that come and go at a full server, a sample of them held against known answers."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from http import HTTPStatus

import numpy as np
from rich.progress import Progress
from rich.table import Table
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.frames import CloseCode

from benchmarks.dialogue import Answer, DialogueError
from benchmarks.guests import GUESTS
from benchmarks.processes import server_memory
from benchmarks.reference import Script, ask, by_transformers, difference, scripts
from benchmarks.server import Counters
from config import Settings
from engine.checkpoint import Checkpoint
from engine.memory import size

SCRIPTS = 4
WATCHED_EVERY = 4  # conversations: one of so many says what is known
SAMPLES = 360  # of a run; none within SAMPLED_S of another
SAMPLED_S = 2.0
REFUSED_S = 0.5  # that a guest waits who was refused
EMPTY_WITHIN_S = 15.0  # of the end all slots are free
SHOWN_ERRORS = 10
MAX_GROWTH = 0.1  # of a process between the first and the last fifth of a run,
MIN_GROWTH = 48 << 20  # bytes, below which it is an allocator's habit
SETTLED = 0.2  # of a run, after which memory counts


@dataclass(frozen=True)
class Sample:
    """The server at a moment."""

    at_s: float
    slots_taken: int
    conversations: int  # that have ended
    checked: int  # of them, equal to what was expected
    refused: int
    ticks: int
    late_ticks: int
    memory: dict[str, int]  # bytes, by process


@dataclass
class Soak:
    """A run, as it goes and when it is over."""

    reference: str  # what watched conversations are held against
    sessions: int
    samples: list[Sample] = field(default_factory=list)
    kinds: dict[str, int] = field(default_factory=dict)  # conversations that ended as they should, by kind
    checked: int = 0
    refused: int = 0
    differences: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    slots_left: int = 0  # taken after all had gone

    @property
    def conversations(self) -> int:
        """Those that have ended as they should."""
        return sum(self.kinds.values())

    def note(self, kind: str) -> None:
        """A conversation of a kind has ended as it should."""
        self.kinds[kind] = self.kinds.get(kind, 0) + 1

    def growth(self) -> dict[str, tuple[int, int]]:
        """The median memory of each process in the run's second fifth and in its last."""
        end_s = self.samples[-1].at_s if self.samples else 0.0
        early = [each for each in self.samples if SETTLED * end_s <= each.at_s <= 2 * SETTLED * end_s]
        late = [each for each in self.samples if each.at_s >= (1 - SETTLED) * end_s]
        names = set.intersection(*(set(each.memory) for each in early + late)) if early and late else set()
        return {
            name: (int(np.median([s.memory[name] for s in early])), int(np.median([s.memory[name] for s in late])))
            for name in sorted(names)
        }

    def problems(self) -> list[str]:
        """Whatever should not have been."""
        found = list(self.errors[:SHOWN_ERRORS])
        if len(self.errors) > SHOWN_ERRORS:
            found.append(f"and {len(self.errors) - SHOWN_ERRORS} errors more")
        if self.reference == "transformers":
            found += self.differences[:SHOWN_ERRORS]
        if not self.checked:
            found.append("no conversation was held against what was expected")
        if self.slots_left:
            found.append(f"{self.slots_left} slots are still taken {EMPTY_WITHIN_S:g} s after the last conversation")
        for name, (early, late) in self.growth().items():
            if late - early > max(MIN_GROWTH, MAX_GROWTH * early):
                found.append(f"{name} grew from {size(early)} to {size(late)}")
        return found


def soak(settings: Settings, checkpoint: Checkpoint | None, sessions: int, seconds: float) -> Soak:
    """A run against the server of these settings; without a checkpoint its first answers are what is expected.

    Raises `DialogueError`, `OSError` and what a WebSocket raises where the server does not answer at all.
    """
    said = scripts(SCRIPTS)
    if checkpoint is None:
        expected = [asyncio.run(ask(settings, script)) for script in said]
    else:
        expected = [by_transformers(checkpoint, settings, script) for script in said]
    run = Soak("transformers" if checkpoint else "its own first answers", sessions)
    asyncio.run(_hold(settings, run, said, expected, seconds))
    return run


async def _hold(
    settings: Settings, run: Soak, said: Sequence[Script], expected: Sequence[Sequence[Answer]], seconds: float
) -> None:
    begin_s = time.monotonic()

    async def guest(number: int) -> None:
        chance = random.Random(number)
        count = number  # so that not all watched ones come at once
        while time.monotonic() < begin_s + seconds:
            which = chance.randrange(SCRIPTS)
            try:
                if count % WATCHED_EVERY == 0:
                    found = difference(await ask(settings, said[which]), expected[which])
                    run.differences += [f"after {time.monotonic() - begin_s:.0f} s: {found}"] if found else []
                    run.checked += not found
                    run.note("is watched")
                else:
                    kind = chance.choice(GUESTS)
                    await kind(settings, said[which], chance)
                    run.note(kind.__name__.replace("_", " "))
            except (DialogueError, WebSocketException, OSError, asyncio.TimeoutError) as error:
                if _is_refusal(error):
                    run.refused += 1
                else:
                    run.errors.append(f"after {time.monotonic() - begin_s:.0f} s: {error!r}")
                await asyncio.sleep(REFUSED_S)
            count += 1

    guests = [asyncio.create_task(guest(number)) for number in range(run.sessions)]
    sampling_s = max(SAMPLED_S, seconds / SAMPLES)
    with Progress(transient=True) as progress:
        task = progress.add_task("conversations", total=seconds)
        while time.monotonic() < begin_s + seconds:
            await asyncio.sleep(sampling_s)
            run.samples.append(await asyncio.to_thread(_sample, settings, run, time.monotonic() - begin_s))
            progress.update(task, completed=time.monotonic() - begin_s)
    await asyncio.gather(*guests)
    until_s = time.monotonic() + EMPTY_WITHIN_S
    while (left := Counters.read(settings).slots_taken) and time.monotonic() < until_s:
        await asyncio.sleep(0.2)
    run.slots_left = left


def _is_refusal(error: Exception) -> bool:
    """Before the upgrade, as an event, or, to one that reads no events, by the close code."""
    if isinstance(error, InvalidStatus):
        return error.response.status_code == HTTPStatus.SERVICE_UNAVAILABLE
    if isinstance(error, ConnectionClosed):
        return error.rcvd is not None and error.rcvd.code == CloseCode.TRY_AGAIN_LATER
    return isinstance(error, DialogueError) and error.code == "full"


def _sample(settings: Settings, run: Soak, at_s: float) -> Sample:
    counters = Counters.read(settings)
    return Sample(
        at_s,
        counters.slots_taken,
        run.conversations,
        run.checked,
        run.refused,
        int(counters.values["sca_tick_seconds_count", ""]),
        int(counters.values["sca_late_ticks_total", ""]),
        server_memory(settings),
    )


def show(run: Soak) -> list[Table]:
    """Conversations by kind, and memory by process."""
    held = Table("conversations", "", title=f"{run.samples[-1].at_s / 60:.1f} minutes, {run.sessions} at once")
    for kind, count in sorted(run.kinds.items()):
        held.add_row(f"a user {kind}", str(count))
    held.add_row(f"watched: equal to {run.reference}", f"{run.checked} of {run.kinds.get('is watched', 0)}")
    held.add_row("refused as full", str(run.refused))
    held.add_row("other errors", str(len(run.errors)))
    held.add_row("ticks, and late ones", f"{run.samples[-1].ticks}, {run.samples[-1].late_ticks}")
    held.add_row("slots taken afterwards", str(run.slots_left))
    memory = Table("process", "memory early", "and at the end")
    for name, (early, late) in run.growth().items():
        memory.add_row(name, size(early), size(late))
    return [held, memory]
