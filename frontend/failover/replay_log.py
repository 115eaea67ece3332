"""The log of a conversation from which another server can rebuild it: audio by time, and the engine's latest state."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from config import Settings
from config.loader import typed
from config.settings import OPTIONS
from contract.controls import Controls, ItemControl, Role
from contract.events import AnswerStarted, Event, Interrupted, Reset, SpeechStopped, Text
from contract.parameters import MAX_ITEMS, REPORT_STATE
from contract.state import Entry, InputState, State
from frontend.audio.pcm import INPUT_BYTES_PER_SECOND, SAMPLE_BYTES
from frontend.tick import TickIn

LEAD_TICKS = 8  # ticks replayed before the open turn, so that the state of the speech detector has settled
BEFORE_SPEECH = ("prefix_padding_ms", "interrupt_after_ms", "silence_duration_ms")  # audio that speech is detected from
QUIET = {"detection": "manual", "create_response": False}


@dataclass(frozen=True)
class Replay:
    """The ticks by which a server learns a conversation, and what the first tick after them requests."""

    ticks: list[TickIn]  # the first one has START; the responses are discarded
    entries: list[Entry]  # in the order in which the server confirms them
    respond: bool  # an answer is due
    items: tuple[ItemControl, ...]  # messages that waited for the end of an answer
    ignores_speech: (
        bool  # the speech in progress was dealt with: the turn that the last tick but one commits is removed
    )


class ReplayLog:
    """Follows the ticks of a conversation and their answers. Times and turn numbers are the client's."""

    def __init__(self, settings: Settings):
        self._settings, self.tick_ms = settings, settings.audio.tick_ms
        self._silence = bytes(settings.audio.input_samples * SAMPLE_BYTES)
        self._max_ticks = round(settings.engine.context_s * 1000 / self.tick_ms)
        self.unanswered: deque[TickIn] = deque()
        self.state: State | None = None  # None: the engine has reported none
        self._start: dict[str, Any] = {}  # options of the START
        self._begin()

    def _begin(self) -> None:
        self._answered = 0  # ticks since the clock began
        self._recent: deque[bytes] = deque()  # audio of the latest of these ticks
        self._turns: dict[Entry, list[bytes]] = {}  # whole ticks with the audio of the users' turns
        self._answer_from_ms = self._speech_until_ms = 0  # start of the latest answer, end of the latest speech
        self._out_of_band_text = ""

    @property
    def clock_ms(self) -> int:
        """The client's input clock at the first tick without an answer."""
        return self._answered * self.tick_ms

    def sent(self, tick: TickIn) -> None:
        """Note a tick on its way to the server."""
        self.unanswered.append(tick)
        if tick.start:
            self._start = {name: value for name, value in tick.options.items() if name in OPTIONS}

    def answered(self, events: Sequence[Event], state: State | None) -> None:
        """Note the answer to the oldest tick; `state` is the engine's, if it has changed."""
        pcm = self.unanswered.popleft().pcm
        if any(isinstance(event, Reset) for event in events):  # the clock begins with this tick
            self._begin()
        self._recent.append(pcm)
        self._answered += 1
        for event in events:
            match event:
                case AnswerStarted():
                    self._answer_from_ms, self._out_of_band_text = self.clock_ms - self.tick_ms, ""
                case SpeechStopped():
                    self._speech_until_ms = event.at_ms
                case Text(out_of_band=True):
                    self._out_of_band_text += event.text
        if state:
            if self.state and self.state.awaits_silence and not state.awaits_silence:
                self._speech_until_ms = self.clock_ms
            self.state = state
            self._turns = {entry: self._turns.get(entry) or self._cut(entry) for entry in state.entries}
        while len(self._recent) > self._needed_ticks:
            self._recent.popleft()

    def give_up_answer(self) -> Interrupted | None:
        """Request the answer in progress again, unless it is out of band; returns the event for the client."""
        state = self.state
        if state is None or (state.answering is None and not state.out_of_band):
            return None
        if state.out_of_band:
            self.state = replace(state, out_of_band=False, answering=None, answer_due=False)
            return Interrupted(
                at_ms=self.clock_ms, turn=0, by="move", heard_ms=0, heard_text=self._out_of_band_text, out_of_band=True
            )
        assert state.answering is not None
        self.state = replace(state, answering=None, answer_due=True)
        heard_ms = self.clock_ms - self._answer_from_ms
        return Interrupted(at_ms=self.clock_ms, turn=state.answering, by="move", heard_ms=heard_ms, heard_text="")

    def replay(self) -> Replay:
        """Compile the replay for a server that knows nothing of the conversation. An answer must be given up before."""
        state = self.state or State()
        entries = [entry for entry in state.entries if entry.text.strip() or self._turns.get(entry)]
        ticks: list[TickIn] = []
        items: list[ItemControl] = []
        for entry in entries:
            if audio := self._turns.get(entry):
                ticks += [*self._items(items), *self._spoken(entry, audio)]
                items = []
            else:
                items.append(ItemControl(Role(entry.role), entry.text))
        ticks += self._items(items)
        ticks.append(TickIn(self._silence, controls=Controls(turn={"detection": self._option("detection")})))
        ticks += self._open(state)
        options = {**self._start, **state.turn_options, **QUIET, REPORT_STATE: True}
        ticks[0] = replace(ticks[0], start=True, options=options)
        pending = tuple(ItemControl(Role(entry.role), entry.text) for entry in state.pending)
        return Replay(ticks, entries, state.answer_due, pending, _ignores_speech(state))

    def _option(self, name: str) -> Any:
        """Return the current value of an option of the section [turn]."""
        chosen = {**self._start, **(self.state.turn_options if self.state else {})}
        default = getattr(self._settings.turn, name)
        return typed(name, chosen.get(name, default), type(default))

    @property
    def _is_manual(self) -> bool:
        return bool(self._option("detection") == "manual")

    @property
    def _needed_ticks(self) -> int:
        """Number of latest ticks to keep: the open turn, or the next one that is detected, may begin in any of them."""
        state = self.state or State()
        before_ms = 0 if self._is_manual else sum(self._option(name) for name in BEFORE_SPEECH)
        begin_ms = self.clock_ms - before_ms if state.open_from_ms is None else state.open_from_ms
        return min(self._max_ticks, self._answered - begin_ms // self.tick_ms + LEAD_TICKS + 1)

    def _cut(self, entry: Entry) -> list[bytes]:
        """Return the ticks with the audio of a user's turn; none if the first ones are no longer kept."""
        if entry.audio_start_ms is None or entry.audio_end_ms is None:
            return []
        first = self._answered - len(self._recent)
        begin, end = entry.audio_start_ms // self.tick_ms - first, -(-entry.audio_end_ms // self.tick_ms) - first
        return list(self._recent)[begin:end] if begin >= 0 else []

    def _items(self, items: Sequence[ItemControl]) -> list[TickIn]:
        """Return ticks of silence that add messages to the history."""
        parts = [tuple(items[first : first + MAX_ITEMS]) for first in range(0, len(items), MAX_ITEMS)]
        return [TickIn(self._silence, controls=Controls(items=part)) for part in parts]

    def _spoken(self, entry: Entry, audio: Sequence[bytes]) -> list[TickIn]:
        """Return the ticks of a user's turn, with its first and last millisecond."""
        assert entry.audio_start_ms is not None
        assert entry.audio_end_ms is not None
        ticks = [TickIn(pcm) for pcm in audio]
        first = Controls(listen=entry.audio_start_ms % self.tick_ms or True, message=entry.text)
        ticks[0] = replace(ticks[0], controls=first)
        last = replace(ticks[-1].controls, commit=entry.audio_end_ms % self.tick_ms or True)
        ticks[-1] = replace(ticks[-1], controls=last)
        return ticks

    def _open(self, state: State) -> list[TickIn]:
        """Return the ticks of the open turn, or of the next one: the audio that no turn of the history has used.

        Audio before that is replaced by silence; the detector receives real audio only of a speech that it is to
        ignore.
        """
        begin_ms = max(state.input_from_ms, min(self._speech_until_ms, state.speech_from_ms or self.clock_ms))
        if state.open_from_ms is not None:
            begin_ms = state.open_from_ms
            first = begin_ms // self.tick_ms
        else:
            first = max(begin_ms // self.tick_ms, self._answered - (1 if self._is_manual else LEAD_TICKS))
        if state.awaits_silence or state.input is InputState.OVERFLOWED:
            begin_ms, first = 0, min(first - 2, self._answered - 3)
        elif state.input is InputState.PUSHED and not self._is_manual:
            begin_ms, first = 0, first - 2
        kept = self._answered - len(self._recent)
        first = max(kept, min(first, self._answered - 1))
        ticks = [TickIn(pcm) for pcm in list(self._recent)[first - kept :]]
        used = min(self.tick_ms, max(0, begin_ms - first * self.tick_ms)) * INPUT_BYTES_PER_SECOND // 1000
        ticks[0] = replace(ticks[0], pcm=bytes(used) + ticks[0].pcm[used:])

        def add(number: int, **controls: Any) -> None:
            ticks[number] = replace(ticks[number], controls=replace(ticks[number].controls, **controls))

        add(0, clear=True)
        if state.open_from_ms is not None and state.input is not InputState.DEFAULT:
            number = state.open_from_ms // self.tick_ms - first
            add(max(0, number), listen=number < 0 or state.open_from_ms % self.tick_ms or True)
        if _ignores_speech(state) and len(ticks) > 1:
            add(-2, commit=True)
        add(-1, message=state.open_text, turn={"create_response": self._option("create_response")})
        return ticks


def _ignores_speech(state: State) -> bool:
    """Return whether the speech in progress belongs to no turn."""
    return state.input is InputState.OVERFLOWED or (state.awaits_silence and state.open_turn is None)
