"""What a conversation is made of, kept beside it: enough to begin it again on another server by reading it once.

Users' parts are their samples and what they typed, answers the text that the user has heard. Times are on the client's
input clock, turns have the numbers that the client knows.
"""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from config import Settings
from config.loader import typed
from config.settings import OPTIONS
from frontend.audio.pcm import SAMPLE_BYTES
from frontend.tick import TickIn

Event = dict[str, Any]
RECENT_TICKS = 8  # that a server hears again where no turn is open: its speech detector has to find its feet
BEFORE_SPEECH = ("prefix_padding_ms", "interrupt_after_ms", "silence_duration_ms")  # that the engine needs of it
ITEMS_AT_ONCE = 16  # in one tick, as the engine takes them


@dataclass(eq=False)
class Part:
    """A user's turn, an answer, or a message that was added."""

    role: str
    number: int = 0
    text: str = ""  # typed, or said as far as it was heard
    span_ms: tuple[int, int] | None = None  # of a user's speech
    sound: list[bytes] = field(default_factory=list)  # whole ticks that hold it
    item_of: TickIn | None = None  # that added it: it asks for no answer

    @property
    def side(self) -> str:
        """How controls name it."""
        return "user" if self.role == "user" else "answer"


@dataclass(frozen=True)
class Replay:
    """How a server gets to know a conversation."""

    ticks: list[TickIn]  # the first one has START; their answers are nobody's
    parts: list[Part]  # in the order in which the server confirms them
    is_due: bool  # an answer is: it has to be asked for with the tick that follows
    waiting: list[dict[str, str]]  # messages that waited for the end of an answer, likewise


class ReplayLog:
    """Takes every tick and every answer of a conversation, and gives the reading."""

    def __init__(self, settings: Settings):
        self._settings = settings
        self.tick_ms = settings.audio.tick_ms
        self._silence = bytes(settings.audio.input_samples * SAMPLE_BYTES)
        self._max_ticks = round(settings.engine.context_s * 1000 / self.tick_ms)
        self.unanswered: deque[TickIn] = deque()
        self.has_begun = False  # a tick was answered
        self._options: dict[str, Any] = {}
        self._begin()

    def _begin(self) -> None:
        self._answered = 0  # ticks since it began
        self.parts: list[Part] = []
        self._recent: deque[TickIn] = deque()  # the newest that were answered
        self._pending: deque[Part] = deque()  # typed or added, and not confirmed
        self._answering: Part | None = None
        self._out_of_band: Part | None = None  # that is asked for, and no part of the conversation
        self._answer_tick = 0  # in which it began
        self._is_due = False
        self._turn_end_ms = 0  # of the last one that was spoken
        self._heard_ms = 0  # up to here an answer was given, and nothing of a turn heard
        self._speech_ms: int | None = None  # where the open turn begins, or the speech in it

    @property
    def clock_ms(self) -> int:
        """The client's input clock at the first tick that was not answered."""
        return self._answered * self.tick_ms

    @property
    def next_number(self) -> int:
        """For a turn that a server begins after it has read these."""
        return max((part.number for part in self.parts), default=0) + 1

    def ask(self, tick: TickIn) -> None:
        """A tick goes to the server."""
        self.unanswered.append(tick)
        asked = tick.parameters
        if tick.start:
            self._options = {name: value for name, value in asked.items() if name in OPTIONS}
        if "turn" in asked:
            self._options |= json.loads(asked["turn"])
        self._expect(tick)

    def _expect(self, tick: TickIn) -> None:
        """What a tick adds to the conversation, and the server has not confirmed."""
        for item in json.loads(tick.parameters["items"]) if "items" in tick.parameters else ():
            self._pending.append(Part(item["role"], text=item["text"], item_of=tick))
        if "message" in tick.parameters:
            self._pending.append(Part("user", text=tick.parameters["message"]))

    def answer(self, events: list[Event]) -> None:
        """A tick's answer has come, with these events."""
        tick = self.unanswered.popleft()
        self._recent.append(tick)
        self._answered += 1
        self.has_begun = True
        self._is_due = self._is_due or bool(tick.parameters.get("respond"))
        if (wanted := tick.parameters.get("out_of_band")) and "cancel" not in json.loads(wanted):
            self._out_of_band = self._out_of_band or Part("assistant")
        for event in events:
            if event.get("out_of_band"):
                self._note_out_of_band(event)
            else:
                self._note(event)
        if tick.parameters.get("listen") and "commit" not in tick.parameters:
            self._speech_ms = (self._answered - 1) * self.tick_ms
        is_answering = self._answering or any(event["type"] == "answer_done" for event in events)
        if is_answering and (self._is_manual or self._speech_ms is None):
            self._heard_ms = self.clock_ms
        for _ in range(len(self._recent) - self._wanted_ticks):
            self._recent.popleft()

    def _chosen(self, name: str) -> Any:
        """An option of the section [turn], as it holds now."""
        default = getattr(self._settings.turn, name)
        return typed(name, self._options.get(name, default), type(default))

    @property
    def _is_manual(self) -> bool:
        return bool(self._chosen("detection") == "manual")

    @property
    def _wanted_ticks(self) -> int:
        """How many of the latest ticks a turn may begin in that is open, or is noticed next."""
        since_turn = self._answered - self._turn_end_ms // self.tick_ms
        if self._is_manual or self._speech_ms is not None:
            return min(self._max_ticks, since_turn)
        before_ms = sum(self._chosen(name) for name in BEFORE_SPEECH)
        return min(self._max_ticks, since_turn, RECENT_TICKS + before_ms // self.tick_ms + 1)

    def _note(self, event: Event) -> None:
        number = event.get("turn", 0)
        match event["type"]:
            case "speech_started":
                self._speech_ms = int(event["at_ms"])
            case "speech_stopped":
                self._speech_ms = None
            case "committed":
                self._confirm(event)
            case "answer_started":
                self._answering, self._is_due = Part("assistant", number), False
                self._answer_tick = self._answered - 1
                self.parts.append(self._answering)
            case "text" if self._answering:
                self._answering.text += event["text"]
            case "answer_done" if self._answering:
                self._answering.text, self._answering = event["text"], None
            case "interrupted" if event["by"] != "move":
                if self._answering:
                    self._answering.text, self._answering = event["heard_text"], None
                self._is_due = False
            case "truncated":
                for part in self._of(number, "answer"):
                    part.text = event["heard_text"]
            case "forgotten":
                self._remove(self._of(number, event["part"]))
            case "turns_dropped":
                self._remove([part for part in self.parts if part.number == number])
            case "error" if event["code"] == "turn_too_long":
                if self._pending:
                    self._pending.popleft()
                else:
                    self._is_due = False
                    self._remove(self.parts[-1:])
            case "reset":  # the engine's clock begins with this tick
                tick = self._recent[-1]
                self._begin()
                self._recent.append(tick)
                self._answered = 1
                for each in (tick, *self.unanswered):
                    self._expect(each)

    def _note_out_of_band(self, event: Event) -> None:
        if event["type"] == "text" and self._out_of_band:
            self._out_of_band.text += event["text"]
        elif event["type"] != "answer_started":
            self._out_of_band = None

    def _confirm(self, event: Event) -> None:
        """A turn of the user, or a message, is part of the conversation."""
        if "audio_start_ms" in event:
            begin_ms, end_ms = span = (int(event["audio_start_ms"]), int(event["audio_end_ms"]))
            typed = [part.text for part in self._pending if not part.item_of]
            self._pending = deque(part for part in self._pending if part.item_of)
            self._is_due = self._is_due or self._chosen("create_response")
            part = Part("user", text="\n".join(typed), span_ms=span, sound=self._sound(begin_ms, end_ms))
            self._turn_end_ms, self._speech_ms = end_ms, None
        else:
            part = self._pending.popleft() if self._pending else Part("user")
            self._is_due = self._is_due or (part.role == "user" and not part.item_of)
        part.number = event["turn"]
        self.parts.append(part)
        while sum(len(part.sound) for part in self.parts) > self._max_ticks:
            del self.parts[0]

    def _sound(self, begin_ms: int, end_ms: int) -> list[bytes]:
        """The ticks from one time to another; none where the first are not kept any more."""
        first = self._answered - len(self._recent)
        begin, end = begin_ms // self.tick_ms - first, -(-end_ms // self.tick_ms) - first
        return [tick.pcm for tick in list(self._recent)[begin:end]] if begin >= 0 else []

    def _of(self, number: int, side: str) -> list[Part]:
        return [part for part in self.parts if part.number == number and part.side == side]

    def _remove(self, parts: list[Part]) -> None:
        self.parts = [part for part in self.parts if part not in parts]

    def give_up_answer(self) -> Event | None:
        """The answer that was being given is not part of it any more and is due anew; the event that says so."""
        if apart := self._out_of_band:  # it alone is not given anew
            self._out_of_band = None
            about = {"turn": 0, "by": "move", "heard_ms": 0, "heard_text": apart.text, "out_of_band": True}
            return {"type": "interrupted", "at_ms": self.clock_ms, **about}
        answer, self._answering = self._answering, None
        if answer is None:
            return None
        self._remove([answer])
        self._is_due = True
        heard_ms = (self._answered - self._answer_tick) * self.tick_ms
        about = {"turn": answer.number, "by": "move", "heard_ms": heard_ms, "heard_text": ""}
        return {"type": "interrupted", "at_ms": self.clock_ms, **about}

    def reading(self) -> Replay:
        """For a server that knows nothing of it. The answer that was being given has been given up."""
        self.parts = [part for part in self.parts if part.text.strip() or part.sound]
        quiet = {"detection": "manual", "create_response": False}
        ticks: list[TickIn] = []
        items: list[dict[str, str]] = []

        def add_items() -> None:
            for first in range(0, len(items), ITEMS_AT_ONCE):
                some = json.dumps(items[first : first + ITEMS_AT_ONCE])
                ticks.append(self._tick(self._silence, {"items": some}))
            items.clear()

        for part in self.parts:
            if not part.sound:
                items.append({"role": part.role, "text": part.text})
                continue
            add_items()
            ticks += self._spoken(part)
        add_items()
        kept = {name: self._chosen(name) for name in quiet}
        if self._is_manual:  # a change of the detection ends what the silence has opened
            ticks.append(self._tick(self._silence, {"turn": json.dumps({"detection": "server_vad"})}))
        ticks.append(self._tick(self._silence, {"turn": json.dumps(kept)}))
        ticks[0] = self._tick(ticks[0].pcm, {**self._options, **quiet, **ticks[0].parameters}, start=True)
        waiting = [
            {"role": part.role, "text": part.text}
            for part in self._pending
            if part.item_of and not any(part.item_of is tick for tick in self.unanswered)
        ]
        return Replay([*ticks, *self._again()], list(self.parts), self._is_due, waiting)

    def _tick(self, pcm: bytes, parameters: dict[str, Any], start: bool = False) -> TickIn:
        return TickIn.from_parameters(pcm, parameters, self.tick_ms, start)

    def _spoken(self, part: Part) -> list[TickIn]:
        """A user's turn, to the sample."""
        assert part.span_ms is not None
        begin_ms, end_ms = part.span_ms
        parameters: list[dict[str, Any]] = [{} for _ in part.sound]
        parameters[0]["listen"] = begin_ms % self.tick_ms or True
        if part.text:
            parameters[0]["message"] = part.text
        parameters[-1]["commit"] = end_ms % self.tick_ms or True
        return [self._tick(pcm, asked) for pcm, asked in zip(part.sound, parameters, strict=True)]

    def _again(self) -> list[TickIn]:
        """What a turn that is open, or about to be, is made of."""
        begin_ms = self._turn_end_ms
        if self._is_manual or self._speech_ms is None:
            begin_ms = max(begin_ms, self._heard_ms)
        if not self._is_manual:
            spoken_ms = self.clock_ms if self._speech_ms is None else self._speech_ms
            begin_ms = max(begin_ms, min(spoken_ms, self.clock_ms) - RECENT_TICKS * self.tick_ms)
        first = -(-begin_ms // self.tick_ms) - (self._answered - len(self._recent))
        ticks = list(self._recent)[max(0, first) :]
        names = {"listen", "message"} if self._pending else {"listen"}
        return [
            self._tick(tick.pcm, {name: tick.parameters[name] for name in names & tick.parameters.keys()})
            for tick in ticks
        ]
