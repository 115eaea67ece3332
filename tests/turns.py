"""Conversations in the dialect `turn` for tests: scripts of a user's audio and controls, a tick at a time."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from contract.controls import Controls
from contract.events import Event
from engine.engine import Engine
from engine.tick import TickInput, TickOutput
from engine.turn.history import Answer
from export.mel_frontend import MelFrontend
from tests.sound import with_knock

TICK = 5120
NO_CONTROLS = Controls()
MANUAL = {"detection": "manual"}
Script = Generator[tuple[np.ndarray, Controls], TickOutput, None]


@dataclass
class ReceivedAnswer:
    """An answer as the client received it, and the turn that it answers."""

    audio_ms: tuple[int, int] | None
    typed: str = ""
    tokens: list[int] = field(default_factory=list)
    codes: list[Tensor] = field(default_factory=list)
    end: str = ""  # answer_done or interrupted; empty while the answer is in progress
    kept: list[int] = field(default_factory=list)  # tokens that stay in the history


class Call:
    """One conversation: sends a script to the engine, and keeps the outputs."""

    def __init__(self, engine: Engine, key: Any, frontend: MelFrontend, script: Script, **options: Any):
        self.engine, self.key = engine, key
        self._frontend, self._states = frontend, frontend.zero_states(1)
        self._script = script
        self.pcm: list[np.ndarray] = []
        self.spoken: list[TickOutput] = []
        self.events: list[Event] = []
        self.answers: list[ReceivedAnswer] = []
        engine.open(key, engine.parse_options(options))
        self._next = next(script)

    def next_input(self) -> TickInput:
        """Return the input of the next tick."""
        pcm, controls = self._next
        log_mel, *self._states = self._frontend(torch.from_numpy(pcm[None]), *self._states)
        self.pcm.append(pcm)
        return TickInput(log_mel[0], pcm, controls)

    def receive(self, spoken: TickOutput) -> bool:
        """Process the output of a tick; return False if the script has ended."""
        assert isinstance(spoken, TickOutput), spoken
        self.spoken.append(spoken)
        self.events += spoken.events
        self._note(spoken)
        try:
            self._next = self._script.send(spoken)
        except StopIteration:
            return False
        return True

    def sound(self, received: ReceivedAnswer) -> np.ndarray | None:
        """Return the samples of an answer's turn, with silence before a turn shorter than a second."""
        if received.audio_ms is None:
            return None
        start, end = (ms * 16 for ms in received.audio_ms)
        return lengthened(np.concatenate(self.pcm)[start:end])

    def _note(self, spoken: TickOutput) -> None:
        typed = self._next[1].message
        for event in spoken.events:
            if event.type == "interrupted":
                self._end("interrupted", event)
            elif event.type == "answer_started":
                span = (event.audio_start_ms, event.audio_end_ms) if event.audio_start_ms is not None else None
                self.answers.append(ReceivedAnswer(span, typed=typed))
        if self.answers and not self.answers[-1].end:
            self.answers[-1].tokens += spoken.tokens
            self.answers[-1].codes.append(spoken.codes[:, spoken.codes[0] >= 0])
        else:
            assert (spoken.codes == -1).all()
        for event in spoken.events:
            if event.type == "answer_done":
                self._end("answer_done", event)

    def _end(self, how: str, event: Any) -> None:
        received = self.answers[-1]
        received.end = how
        if getattr(event, "out_of_band", False):
            return
        entries = self.engine.conversation(self.key).history.entries
        received.kept = next((list(entry.tokens) for entry in reversed(entries) if isinstance(entry, Answer)), [])


def lengthened(pcm: np.ndarray) -> np.ndarray:
    """Return samples of at least a second, with silence before shorter ones."""
    return np.concatenate([np.zeros(max(0, 16_000 - len(pcm)), np.int16), pcm])


def play(call: Call) -> Call:
    """Run a conversation that is the only one."""
    while call.receive(call.engine.tick({call.key: call.next_input()})[call.key]):
        pass
    return call


def play_together(
    engine: Engine, begin: Mapping[Any, Callable[[], Call]], max_calls: int, chance: random.Random
) -> None:
    """Run conversations that begin at random ticks, at most `max_calls` at a time."""
    waiting, going = dict(begin), {}
    while waiting or going:
        if waiting and len(going) < max_calls and chance.random() < 0.5:
            key = next(iter(waiting))
            going[key] = waiting.pop(key)()
        outputs = engine.tick({key: call.next_input() for key, call in going.items()})
        for key, spoken in outputs.items():
            if not going[key].receive(spoken):
                del going[key]
                engine.close(key)


def ticks(pcm: np.ndarray) -> Iterable[np.ndarray]:
    """Split samples into whole ticks, the last one padded with silence."""
    padded = np.pad(pcm, (0, -len(pcm) % TICK))
    return padded.reshape(-1, TICK)


def silence() -> np.ndarray:
    """Return a tick of silence."""
    return np.zeros(TICK, np.int16)


class User:
    """The speakers that the events have reported."""

    def __init__(self) -> None:
        self.speakers: set[str] = set()

    def note(self, spoken: TickOutput) -> TickOutput:
        for event in spoken.events:
            if event.type == "speech_started":
                self.speakers.add("user")
            elif event.type == "speech_stopped":
                self.speakers.discard("user")
            elif event.type == "answer_started":
                self.speakers.add("assistant")
            elif event.type in ("answer_done", "interrupted"):
                self.speakers.discard("assistant")
        return spoken

    def speak(self, pcm: np.ndarray, first: Controls = NO_CONTROLS, last: Controls = NO_CONTROLS) -> Script:
        """Yield audio, with controls on its first and its last tick."""
        parts = list(ticks(pcm))
        for i, part in enumerate(parts):
            self.note((yield part, last if i == len(parts) - 1 else first if i == 0 else NO_CONTROLS))

    def wait(self, count: int) -> Script:
        """Yield `count` ticks of silence."""
        for _ in range(count):
            self.note((yield silence(), NO_CONTROLS))

    def until_quiet(self) -> Script:
        """Yield silence until neither user nor assistant has spoken for two ticks."""
        quiet = 0
        while quiet < 2:
            yield from self.wait(1)
            quiet = 0 if self.speakers else quiet + 1


def kinds(call: Call) -> list[str]:
    return [event.type for event in call.events if event.type not in ("text", "committed")]


def event_of(call: Call, kind: str) -> Any:
    return next(event for event in call.events if event.type == kind)


def converse(engine: Engine, frontend: MelFrontend, script: Script, key: Any = "test", **options: Any) -> Call:
    call = play(Call(engine, key, frontend, script, **options))
    engine.close(key)
    return call


def spoken_frames(call: Call) -> list[int]:
    """Return the number of codec frames of speech in each tick."""
    return [int((spoken.codes[0] >= 0).sum()) for spoken in call.spoken]


def asking(question: np.ndarray, then: int = 30) -> Script:
    """Yield a question that a commit ends, and ticks of silence."""
    user = User()
    yield from user.speak(question, last=Controls(commit=True))
    yield from user.wait(then)


def loudest_first(pcm: np.ndarray) -> np.ndarray:
    """Return audio whose first window is the loudest: no window is prefilled again."""
    return with_knock(pcm // 4)


def interrupted(questions: list[np.ndarray], interruption: np.ndarray) -> Script:
    user = User()
    yield from user.speak(questions[0], last=Controls(commit=True))
    yield from user.wait(12)
    yield from user.speak(interruption)
    yield from user.wait(16)
