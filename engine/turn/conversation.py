"""One conversation in the dialect `turn` as a state machine: turn taking, what is prefilled, and the answers.

A tick is `advance` (the user's audio and the controls), then `next_prefill` as often as the tick's budget allows,
`next_decode`, `decoded` (the model's output) and `finish_tick`. It computes with positions and frame numbers only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from config.options import Options
from contract.controls import Controls
from contract.events import Event
from engine.cache_layout import TALKER_PREFIX, Evictions
from engine.dialect import Conversation
from engine.turn.actions import FRAME_MS, Decode, Decoded, Prefill, PrefillChunk, Question, TurnConfig
from engine.turn.answers import Answers
from engine.turn.context import Context
from engine.turn.controls import TurnControls
from engine.turn.edits import HistoryEdits
from engine.turn.events import TickEvents
from engine.turn.history import History
from engine.turn.messages import Messages
from engine.turn.prefill_queue import PrefillQueue
from engine.turn.scratch_tasks import ScratchTasks
from engine.turn.state_report import StateReport
from engine.turn.turn_taking import TurnTaking
from engine.turn.user_input import UserInput

RECENT_MS = 1000  # audio that is kept in addition to what the options require


class TurnConversation(Conversation):
    """The tick of a conversation: the order of its stages, the clock, and the parts that own the state."""

    def __init__(self, slot: int, options: Options, config: TurnConfig, prompt: list[int]):
        """Create a conversation; `prompt`: tokens of the system prompt's turn."""
        super().__init__(slot, options, prompt)
        self.config = config
        self.clock = 0  # log-mel frames received
        self.oldest_frame = 0  # frames before it are not needed any more
        self.waited_ticks = 0  # ticks in which a chunk was queued and none was prefilled
        self.tick_events = events = TickEvents()
        self.history = history = History(config, len(prompt))
        self.queue = queue = PrefillQueue()
        self.input = UserInput(config, history, queue, events)
        self.answers = Answers(config, history, queue, events)
        self.messages = Messages(config, history, queue, events)
        self.edits = HistoryEdits(config, history, queue, self.answers, self.input, events)
        self.scratch = ScratchTasks(events)
        self.context = Context(self)
        self.turn_taking = TurnTaking(self)
        self.controls = TurnControls(self)
        self._state_report = StateReport()

    @property
    def events(self) -> list[Event]:
        """The tick's events, in order."""
        return self.tick_events.emitted

    @property
    def clock_ms(self) -> int:
        """The input clock: milliseconds of audio that the conversation has received."""
        return self.clock * FRAME_MS

    @property
    def thinker_length(self) -> int:
        """Positions that the conversation takes in the thinker's cache."""
        return self.history.thinker_length

    @property
    def detects_turns(self) -> bool:
        """True if turns begin and end by voice activity, False if by commits."""
        return self.options.turn.detection == "server_vad"

    @property
    def recent_frames(self) -> int:
        """Log-mel frames that are kept while no turn is open: a turn may begin in them."""
        turn = self.options.turn
        return (turn.prefix_padding_ms + turn.interrupt_after_ms + turn.silence_duration_ms + RECENT_MS) // FRAME_MS

    def advance(self, frames: int, controls: Controls, probabilities: Sequence[float]) -> None:
        """Process a tick of `frames` log-mel frames; `probabilities`: of speech in its windows of 32 ms."""
        first_frame = self.clock
        self.clock += frames
        self.tick_events.begin_tick(self.clock_ms)
        self.waited_ticks = self.waited_ticks + 1 if self.queue else 0
        self.controls.apply_before_audio(controls, first_frame)
        self.turn_taking.hear(first_frame, probabilities)
        self.controls.apply_after_audio(controls)
        if self.answers.current is None:
            self.input.queue_windows(self.clock)
        clips = [chunk.clip.turn_first for chunk in self.queue if chunk.clip]
        first = self.input.open.first if self.input.open else self.clock - self.recent_frames
        self.oldest_frame = max(self.oldest_frame, min(first, *clips, self.clock))

    def take_evictions(self) -> list[Evictions]:
        """Remove and return the evictions that run before anything else of the tick."""
        return self.history.take_evictions()

    @property
    def next_chunk(self) -> PrefillChunk | None:
        """The next chunk to prefill, with the end of the answer before it."""
        chunk = self.queue.first
        return replace(chunk, closing=self.history.closing) if chunk else None

    def next_prefill(self) -> Prefill | None:
        """Take the next chunk off the queue and count it as prefilled; the oldest turns make room for it.

        Returns None if nothing is queued, or if the turn does not fit into the context: then it is dropped.
        """
        chunk = self.next_chunk
        if chunk is None:
            return None
        incoming = len(chunk.tokens) + self.config.frames_per_tick
        may_evict = not self.input.is_default(chunk.turn)
        room = self.context.make_room(chunk.turn, incoming, incoming + TALKER_PREFIX, may_evict)
        if not room.is_enough:  # all older turns were evicted: there is nothing to move
            self.context.drop_turn(chunk.turn)
            return None
        chunk = replace(self.queue.take(), closing=self.history.closing)
        self.waited_ticks = 0
        prefill = Prefill(chunk, self.history.thinker_length, self.history.talker_length, room.evictions)
        self.history.add(chunk)
        if chunk.answer:
            begun = self.answers.begin()
            if begun.kind.consumes_input:
                self.scratch.renew(begun.user, self.options.turn)
        return prefill

    def prefill_again(self, frame: int) -> None:
        """Take back the latest turn's windows from a frame on: its end has moved the floor of their log-mel."""
        chunk = self.queue.first
        assert chunk is not None
        assert chunk.entry is not None
        self.history.take_back(chunk.entry, self.queue.again(frame))

    def next_decode(self) -> Decode | None:
        """Return a tick of the answer in progress; None if there is none, or if the context is full."""
        current, frames = self.answers.in_progress, self.config.frames_per_tick
        if current is None:
            return None
        room = self.context.make_room(current.answer.turn, frames, frames)
        if room.is_enough:
            return self.answers.decode(room.evictions)
        self.history.evict_later(room.evictions)
        self._end_answer("context")
        return None

    def decoded(self, tokens: Sequence[int], first_codes: Sequence[int]) -> Decoded:
        """Take the output of a `Decode`: text tokens, and codec frames by their first codes."""
        current = self.answers.in_progress
        decoded = self.answers.decoded(tokens, first_codes)
        if current and current.has_ended:
            self._end_answer("length" if current.has_max_length else "end")
        return decoded

    def finish_tick(self) -> None:
        """Emit the state after the tick's other events, if it changed and the bridge has requested it."""
        if self.options.report_state:
            self._state_report.emit_change(self)

    @property
    def has_question(self) -> bool:
        """True if a question about the speaker waits."""
        return bool(self.scratch)

    def take_question(self) -> Question:
        """Remove and return the next question about the speaker."""
        return self.scratch.take()

    def _end_answer(self, reason: str) -> None:
        current = self.answers.current
        self.answers.end(reason)
        if current and current.kind.consumes_input:
            self.input.consume(self.clock - self.options.turn.prefix_padding_ms // FRAME_MS)
