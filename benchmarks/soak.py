"""Hours of conversations at a full server; a sample of them is compared with known answers."""

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

from benchmarks.reference import Script, difference, generate_answers, request_answers, scripts
from benchmarks.server import Counters
from benchmarks.server_memory import server_memory
from benchmarks.soak_clients import CLIENTS
from config import Settings
from engine.checkpoint import Checkpoint
from engine.memory import size
from training.judges.dialogue import Answer, DialogueError

SCRIPTS = 4
CHECKED_EVERY = 4  # one of CHECKED_EVERY conversations follows a script with known answers
CHECKED = "checked answers"  # the kind of these conversations
MAX_SAMPLES = 360  # samples of a run
MIN_SAMPLE_INTERVAL_S = 2.0
RETRY_S = 0.5  # pause of a client after a refusal or an error
EMPTY_TIMEOUT_S = 15.0  # time after the last conversation in which all slots have to be free
SHOWN_ERRORS = 10
MAX_GROWTH = 0.1  # share by which a process's memory may grow between the first and the last fifth of a run
MIN_GROWTH = 48 << 20  # growth in bytes that is tolerated in any case: an allocator's variation
SETTLED = 0.2  # share of a run after which memory is compared


@dataclass(frozen=True)
class Sample:
    """The server at one time."""

    at_s: float
    slots_taken: int
    conversations: int  # completed conversations
    checked: int  # conversations whose answers were equal to the expected ones
    refused: int
    ticks: int
    late_ticks: int
    memory: dict[str, int]  # bytes by process


@dataclass
class Soak:
    """A run, in progress or complete."""

    reference: str  # source of the expected answers
    sessions: int
    samples: list[Sample] = field(default_factory=list)
    kinds: dict[str, int] = field(default_factory=dict)  # completed conversations by kind
    checked: int = 0
    refused: int = 0
    differences: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    slots_left: int = 0  # slots that are occupied after the last conversation

    @property
    def conversations(self) -> int:
        """Number of completed conversations."""
        return sum(self.kinds.values())

    def count(self, kind: str) -> None:
        """Count a completed conversation of a kind."""
        self.kinds[kind] = self.kinds.get(kind, 0) + 1

    def growth(self) -> dict[str, tuple[int, int]]:
        """Return the median memory of each process in the run's second fifth and in its last."""
        end_s = self.samples[-1].at_s if self.samples else 0.0
        early = [each for each in self.samples if SETTLED * end_s <= each.at_s <= 2 * SETTLED * end_s]
        late = [each for each in self.samples if each.at_s >= (1 - SETTLED) * end_s]
        names = set.intersection(*(set(each.memory) for each in early + late)) if early and late else set()
        return {
            name: (int(np.median([s.memory[name] for s in early])), int(np.median([s.memory[name] for s in late])))
            for name in sorted(names)
        }

    def problems(self) -> list[str]:
        """Return every error, difference, occupied slot and growing process."""
        problems = list(self.errors[:SHOWN_ERRORS])
        if len(self.errors) > SHOWN_ERRORS:
            problems.append(f"{len(self.errors) - SHOWN_ERRORS} further errors")
        if self.reference == "transformers":
            problems += self.differences[:SHOWN_ERRORS]
        if not self.checked:
            problems.append("no conversation was equal to the expected one")
        if self.slots_left:
            problems.append(f"{self.slots_left} slots are occupied {EMPTY_TIMEOUT_S:g} s after the last conversation")
        for name, (early, late) in self.growth().items():
            if late - early > max(MIN_GROWTH, MAX_GROWTH * early):
                problems.append(f"{name} grew from {size(early)} to {size(late)}")
        return problems


def soak(settings: Settings, checkpoint: Checkpoint | None, sessions: int, seconds: float) -> Soak:
    """Run `sessions` clients at once against the server of these settings.

    `checkpoint`: computes the expected answers by transformers; None: the server's first answers are expected. Raises
    `DialogueError`, `OSError` and the exceptions of a WebSocket if the server does not respond at all.
    """
    made = scripts(SCRIPTS)
    if checkpoint is None:
        expected = [asyncio.run(request_answers(settings, script)) for script in made]
    else:
        expected = [generate_answers(checkpoint, settings, script) for script in made]
    run = Soak("transformers" if checkpoint else "the server's first answers", sessions)
    asyncio.run(_run(settings, run, made, expected, seconds))
    return run


async def _run(
    settings: Settings, run: Soak, made: Sequence[Script], expected: Sequence[Sequence[Answer]], seconds: float
) -> None:
    begin_s = time.monotonic()

    async def converse_repeatedly(number: int) -> None:
        draw = random.Random(number)
        count = number  # clients start at different positions of the cycle of CHECKED_EVERY
        while time.monotonic() < begin_s + seconds:
            index = draw.randrange(SCRIPTS)
            try:
                if count % CHECKED_EVERY == 0:
                    problem = difference(await request_answers(settings, made[index]), expected[index])
                    run.differences += [f"after {time.monotonic() - begin_s:.0f} s: {problem}"] if problem else []
                    run.checked += not problem
                    run.count(CHECKED)
                else:
                    client = draw.choice(CLIENTS)
                    await client(settings, made[index], draw)
                    run.count(client.__name__.replace("_", " "))
            except (DialogueError, WebSocketException, OSError, asyncio.TimeoutError) as error:
                if _is_refusal(error):
                    run.refused += 1
                else:
                    run.errors.append(f"after {time.monotonic() - begin_s:.0f} s: {error!r}")
                await asyncio.sleep(RETRY_S)
            count += 1

    clients = [asyncio.create_task(converse_repeatedly(number)) for number in range(run.sessions)]
    interval_s = max(MIN_SAMPLE_INTERVAL_S, seconds / MAX_SAMPLES)
    with Progress(transient=True) as progress:
        task = progress.add_task("conversations", total=seconds)
        while time.monotonic() < begin_s + seconds:
            await asyncio.sleep(interval_s)
            run.samples.append(await asyncio.to_thread(_sample, settings, run, time.monotonic() - begin_s))
            progress.update(task, completed=time.monotonic() - begin_s)
    await asyncio.gather(*clients)
    deadline_s = time.monotonic() + EMPTY_TIMEOUT_S
    while (left := Counters.read(settings).slots_taken) and time.monotonic() < deadline_s:
        await asyncio.sleep(0.2)
    run.slots_left = left


def _is_refusal(error: Exception) -> bool:
    """Return whether the server was full: reported before the upgrade, as an event, or as the close code."""
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
    """Return a table of conversations by kind, and a table of memory by process."""
    counts = Table("conversations", "", title=f"{run.samples[-1].at_s / 60:.1f} minutes, {run.sessions} at once")
    for kind, count in sorted(run.kinds.items()):
        counts.add_row(kind, str(count))
    counts.add_row(f"checked: equal to {run.reference}", f"{run.checked} of {run.kinds.get(CHECKED, 0)}")
    counts.add_row("refused as full", str(run.refused))
    counts.add_row("other errors", str(len(run.errors)))
    counts.add_row("ticks, late ticks", f"{run.samples[-1].ticks}, {run.samples[-1].late_ticks}")
    counts.add_row("slots occupied at the end", str(run.slots_left))
    memory = Table("process", "memory in the second fifth", "in the last fifth")
    for name, (early, late) in run.growth().items():
        memory.add_row(name, size(early), size(late))
    return [counts, memory]
