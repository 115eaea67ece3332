"""One conversation in the dialect `turn`, as a state machine: who speaks, what is to be prefilled, what the answer is.

A tick is `advance` (what was heard and asked), then `next_prefill` as often as the tick's budget allows, `next_decode`,
and `decoded` (what the model gave). It knows positions and frame numbers, and touches no tensor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from config.options import Options
from config.settings import TurnSettings
from contract.controls import Controls, ForgetControl, ItemControl, OutOfBandControl, TruncateControl
from contract.errors import ErrorCode
from contract.events import (
    AnswerDone,
    AnswerStarted,
    Committed,
    Emotion,
    Error,
    Event,
    Forgotten,
    InputDropped,
    Interrupted,
    Language,
    SpeechStarted,
    SpeechStopped,
    StateChanged,
    Text,
    Transcript,
    Truncated,
    TurnsDropped,
)
from contract.state import Entry, InputState, State
from engine.cache_layout import TALKER_PREFIX, Evictions
from engine.clip import Clip
from engine.dialect import Conversation
from engine.errors import OptionError
from engine.options import changed_turn
from engine.turn.actions import Decode, Decoded, Prefill, PrefillChunk, Question, TurnConfig
from engine.turn.answer import Answer
from engine.turn.history import History, Turn
from engine.turn.prefill_queue import PrefillQueue
from engine.turn.speech_detector import SpeechDetector
from engine.turn.state_report import StateReport

FRAME_MS = 10  # of a log-mel frame
RECENT_MS = 1000  # of sound that is kept beside what the options need
LABELS: dict[str, type[Event]] = {"emotion": Emotion, "language": Language}
TEXT_RNG_OFFSET = 2**40  # where a conversation's random numbers for text begin: far past those for codes


@dataclass
class TurnConversation(Conversation):
    """See the module."""

    config: TurnConfig
    history: History
    detector: SpeechDetector
    events: list[Event] = field(default_factory=list)  # of this tick
    clock: int = 0  # log-mel frames heard
    oldest_frame: int = 0  # no frame before it is needed any more
    waited_ticks: int = 0  # since a chunk has been queued and none was prefilled

    _answer: Answer | None = None
    _queue: PrefillQueue = field(default_factory=PrefillQueue)
    _questions: list[Question] = field(default_factory=list)
    _text_tokens: int = 0  # sampled since the conversation began
    _codec_frames: int = 0
    _turn: Turn | None = None  # the user's turn that is open ...
    _turn_first: int = 0  # ... from this frame on ...
    _queued: int = 0  # ... whose windows are queued up to this one
    _windows: list[PrefillChunk] = field(default_factory=list)  # those of the latest turn that were prefilled
    _earliest: int = 0  # no later turn begins before this frame
    _items: list[ItemControl] = field(default_factory=list)  # that wait for the end of an answer
    _turns: int = 0  # begun so far
    _evictions: list[Evictions] = field(default_factory=list)  # that come before all else of the next prefill
    _respond_due: bool = False  # the open turn is answered when it ends, whatever the options say
    _ignores_speech: bool = False  # that has filled the context, until it ends
    _open_state: InputState = InputState.IDLE  # meaningful while a turn is open
    _is_respond_carried: bool = False  # a `respond` whose turn was dropped in this tick
    _state_report: StateReport = field(default_factory=StateReport)
    _turn_options: dict[str, Any] = field(default_factory=dict)  # changed since START

    @classmethod
    def begin(cls, slot: int, options: Options, config: TurnConfig, prompt: list[int]) -> TurnConversation:
        """A new one; `prompt` is the system prompt's turn."""
        return cls(
            slot,
            options,
            prompt,
            config=config,
            history=History(len(prompt)),
            detector=SpeechDetector(options.turn),
        )

    @property
    def clock_ms(self) -> int:
        """The input clock: milliseconds of sound that the conversation has heard."""
        return self.clock * FRAME_MS

    @property
    def thinker_length(self) -> int:
        """Positions that the conversation takes in the thinker's cache."""
        return self.history.thinker_length

    @property
    def longest_turn(self) -> int:
        """Tokens of the longest turn that fits into the context alone: a long prompt takes some of it."""
        beside_prompt = self.config.thinker_positions - self.history.prompt - self.config.frames_per_tick
        return min(self.config.longest_turn, beside_prompt)

    @property
    def detects_turns(self) -> bool:
        """Whether turns begin and end by voice activity; else by commits."""
        return self.options.turn.detection == "server_vad"

    @property
    def recent_frames(self) -> int:
        """Log-mel frames that are kept while no turn is open: a turn may begin in them."""
        turn = self.options.turn
        recent_ms = turn.prefix_padding_ms + turn.interrupt_after_ms + turn.silence_duration_ms + RECENT_MS
        return recent_ms // FRAME_MS

    @property
    def _opened_itself(self) -> bool:
        """True if the open turn is the default one of manual detection: it may hold no speech."""
        return self._turn is not None and self._open_state is InputState.DEFAULT

    @property
    def answers(self) -> bool:
        """Whether an answer is due or being given."""
        return self._answer is not None

    # What was heard and asked

    def advance(self, frames: int, controls: Controls, probabilities: Sequence[float]) -> None:
        """A tick of so many log-mel frames, what the client asks, and the probabilities of speech in its windows."""
        begin = self.clock
        self.events = []
        self.waited_ticks = self.waited_ticks + 1 if self._queue else 0
        self.clock += frames
        if controls.turn:
            self._change(controls.turn)
        if controls.cancel:
            self._cancel()
        if controls.clear:
            self._clear(begin)
        if controls.truncate:
            self._truncate(controls.truncate)
        if controls.forget:
            self._forget(controls.forget)
        self._items += controls.items
        self._add_items()
        if controls.listen:
            self._listen(begin if controls.listen is True else begin + controls.listen // FRAME_MS)
        if controls.message:
            self._take_message(controls.message)
        if self.detects_turns:
            for probability in probabilities:
                self._detect(probability)
        elif self._turn is None and self._answer is None:
            self._begin_turn(begin, InputState.DEFAULT)
        if controls.commit:
            self._commit(self.clock if controls.commit is True else begin + controls.commit // FRAME_MS)
        if controls.respond or (self._is_respond_carried and not self._answer):
            self._respond()
        self._is_respond_carried = False
        if controls.out_of_band:
            self._answer_out_of_band(controls.out_of_band)
        self._queue_windows(self.clock)
        if controls.transcript:
            self._emit(Transcript, turns=list(self.history.transcript(self.config.decode)))
        self.oldest_frame = max(self.oldest_frame, self._oldest_needed())

    def _oldest_needed(self) -> int:
        clips = [chunk.clip.turn_first for chunk in self._queue if chunk.clip]
        return min(self._turn_first if self._turn else self.clock - self.recent_frames, *clips, self.clock)

    def _detect(self, probability: float) -> None:
        """The next window of 32 ms."""
        detector = self.detector
        was_speech = detector.is_speech
        detector.feed([probability])
        stopped = was_speech and not detector.is_speech
        if detector.is_speech and not was_speech:
            self._emit(SpeechStarted, at_ms=detector.started_ms)
        if self._ignores_speech:
            self._ignores_speech = not stopped
        elif detector.is_speech or stopped:
            turn = self.options.turn
            is_enough = turn.interrupt and detector.spoken_ms >= turn.interrupt_after_ms
            if self._answer and (is_enough or self._answer.is_out_of_band):
                self._interrupt("speech")
            if not self._answer and not self._turn and detector.voiced_until_ms > self._earliest * FRAME_MS:
                first = detector.started_ms // FRAME_MS - turn.prefix_padding_ms // FRAME_MS
                self._begin_turn(first, InputState.SPEECH)
        if stopped:
            self._emit(SpeechStopped, at_ms=detector.stopped_ms)
            if self._turn:
                self._end_turn(detector.stopped_ms // FRAME_MS)

    def _new_turn(self, **about: Any) -> Turn:
        self._turns += 1
        return Turn(self._turns, **about)

    def _begin_turn(self, frame: int, state: InputState) -> None:
        self._turn, self._open_state, self._windows = self._new_turn(), state, []
        self._turn_first = self._queued = max(frame, self._earliest, self.oldest_frame)

    def _end_turn(self, end: int) -> None:
        """Queues what is left of the open turn, and the answer."""
        turn, chat = self._turn, self.config.chat
        assert turn is not None
        self._queue_windows(end)
        for chunk in self._queue:  # still queued: their floor is the whole turn's
            if chunk.turn is turn and chunk.clip:
                chunk.clip = chunk.clip._replace(turn_end=end)
        turn.sound_ms = (self._turn_first * FRAME_MS, end * FRAME_MS)
        clip = Clip(self._turn_first, self._queued, end, end)
        window, tokens = self.config.window_frames, self.config.audio_tokens
        turn.audio_tokens = (clip.first - clip.turn_first) // window * tokens(window) + tokens(clip.frames)
        audio = [*self._audio(tokens(clip.frames)), *chat.after_audio]
        self._earliest, self._turn = end, None
        self._emit(Committed, turn=turn.number, audio_start_ms=turn.sound_ms[0], audio_end_ms=turn.sound_ms[1])
        answers = self.options.turn.create_response or self._respond_due
        self._respond_due = False
        last: tuple[list[int], Clip | None] = audio, clip
        if turn.typed:
            self._queue.add(turn, audio, clip)
            last = chat.typed(turn.typed, after_audio=True), None
        if answers:
            self._answer_turn(turn, *last)
        else:
            self._queue.add(turn, [*last[0], *chat.close], last[1])

    def _queue_windows(self, end: int) -> None:
        """Queues the windows of the open turn that are complete and not its last."""
        window = self.config.window_frames
        while self._turn and not self._answer and end - self._queued > window:
            clip = Clip(self._turn_first, self._queued, self._queued + window)
            self._queue.add(self._turn, self._audio(self.config.audio_tokens(window)), clip)
            self._queued += window

    def _audio(self, count: int) -> list[int]:
        """So many audio tokens, and before the first of a turn its opening."""
        chat = self.config.chat
        tokens = [chat.audio] * count
        return tokens if self._queued > self._turn_first else [*chat.user_opening, *chat.before_audio, *tokens]

    def _take_message(self, message: str) -> None:
        """A typed message: part of the turn that is being spoken, else a turn of its own."""
        if self._answer:
            self._interrupt("message")
        is_spoken = self.detector.is_speech or (not self.detects_turns and not self._opened_itself)
        if self._turn and is_spoken:
            self._turn.typed = f"{self._turn.typed}\n{message}" if self._turn.typed else message
            return
        if self._turn:
            self._abandon_turn()
            self._earliest = self.clock
        tokens = self.config.chat.typed(message)
        if len(tokens) > self.longest_turn:
            reason = f"it is {len(tokens)} tokens long, expected at most {self.longest_turn} (engine.context_s)"
            self._emit(Error, code=ErrorCode.TURN_TOO_LONG, message=f"the user's message is dropped: {reason}")
        else:
            turn = self._new_turn(typed=message)
            self._emit(Committed, turn=turn.number)
            self._answer_turn(turn, tokens)

    def _add_items(self) -> None:
        """Messages that ask for no answer; while one is given they wait, and they come before a turn that is open."""
        if self._answer or not self._items:
            return
        chat, items, self._items = self.config.chat, self._items, []
        if self._turn:
            self._take_back_open_turn(self._turn)
        for item in items:
            turn = self._new_turn(role=item.role.value, typed=item.text)
            tokens = chat.typed(item.text) if item.role == "user" else chat.message(item.role.value, item.text)
            if len(tokens) > self.longest_turn:
                reason = f"{len(tokens)} tokens came, expected at most {self.longest_turn} (engine.context_s)"
                self._emit(Error, code=ErrorCode.TURN_TOO_LONG, what="item", message=f"an item is dropped: {reason}")
                continue
            self._emit(Committed, turn=turn.number)
            if item.role == "user":
                self._queue.add(turn, [*tokens, *chat.close], None)
            else:
                self._queue.add_aside(turn, tokens)

    def _take_back_open_turn(self, turn: Turn) -> None:
        """What is queued or prefilled of the open turn will be queued again, after what comes before it."""
        self._queue.drop(turn)
        self.history.remove(turn)
        turn.user, self._windows, self._queued = 0, [], self._turn_first

    def _respond(self) -> None:
        """An answer to the history as it is; while the user speaks, when they have stopped."""
        self._respond_due = False
        if self._answer:
            self._emit(Error, code=ErrorCode.ANSWER_ACTIVE, message="respond came while an answer is being given")
        elif self._turn and not self._opened_itself:
            self._respond_due = True
        else:
            if self._turn:
                self._abandon_turn()
                self._earliest = self.clock
            self._queue_answer(self._new_turn(), [])

    def _answer_out_of_band(self, wanted: OutOfBandControl) -> None:
        """An answer to the history that leaves nothing in it; the user's speech ends it, and comes first."""
        if wanted.cancel:
            if self._answer and self._answer.is_out_of_band:
                self._interrupt("cancel")
            return
        chat = self.config.chat
        message = chat.message("system", wanted.instructions) if wanted.instructions.strip() else []
        tokens = len(message) + len(chat.answer_opening)
        if self._answer or self.detector.is_speech or (self._turn and not self._opened_itself):
            reason = "out_of_band came while the user speaks or an answer is being given"
            self._emit(Error, code=ErrorCode.ANSWER_ACTIVE, message=reason, out_of_band=True)
        elif tokens > self.longest_turn:
            reason = f"{tokens} tokens came, expected at most {self.longest_turn} (engine.context_s)"
            message = f"instructions are dropped: {reason}"
            self._emit(Error, code=ErrorCode.TURN_TOO_LONG, message=message, out_of_band=True)
        elif options := self._changed(wanted.turn, out_of_band=True):
            if self._turn:
                self._abandon_turn()
                self._earliest = self.clock
            turn = Turn(is_out_of_band=True)
            if message:
                self._queue.add_aside(turn, message)
            self._queue_answer(turn, [], options=options)

    def _forget_out_of_band(self, answer: Answer) -> None:
        """The history is as if nobody had asked; it is the last in it."""
        self._queue.drop(answer.turn)
        if answer.is_begun:
            self._queue.close([])
        self.history.remove(answer.turn)
        self._text_tokens, self._codec_frames = answer.drawn_before

    def _change(self, changes: Mapping[str, Any]) -> None:
        """Options of turns that hold from here on."""
        turn = self._changed(changes)
        if turn is None:
            return
        if turn.detection != self.options.turn.detection:
            if not (self._turn and self.detects_turns) or self._respond_due:  # else it is kept: a commit ends it
                self._abandon_turn()
                self._earliest = self.clock
            elif self._turn:
                self._open_state = InputState.KEPT
            self._end_speech()
            self.detector.begin_at(self.clock * FRAME_MS)
        self.options = replace(self.options, turn=turn)
        self._turn_options |= changes
        self._questions = [question for question in self._questions if turn.selected_labels(question.name)]
        self.detector.change(turn)

    def _changed(self, changes: Mapping[str, Any], **kind: bool) -> TurnSettings | None:
        """The options of turns with some of them changed; None, and an event of this kind, where they cannot be."""
        try:
            turn = changed_turn(self.options.turn, changes)
            self.config.expect_possible(turn)
        except OptionError as error:
            self._emit(Error, code=ErrorCode.BAD_CONTROL, message=str(error), **kind)
            return None
        return turn

    def _truncate(self, heard: TruncateControl) -> None:
        """An answer's text in the history ends where its user has heard it to."""
        turn, chat = self.history.find(heard.turn), self.config.chat
        if turn is None or not turn.answer or turn.role != "user" or (self._answer and self._answer.turn is turn):
            reason = f"turn {heard.turn} has no answer that has ended"
            self._emit(Error, code=ErrorCode.NOTHING_TO_TRUNCATE, message=reason)
            return
        had, closing = len(turn.tokens), self._closing_of(turn)
        if turn.interrupted or not turn.spoken_ms:
            kept = math.ceil(heard.heard_ms / 1000 * self.config.heard_tokens_per_s)
        else:
            kept = math.ceil(heard.heard_ms / turn.spoken_ms * had)
        self._cut_tokens(turn, min(kept, had))
        turn.interrupted = turn.interrupted or len(turn.tokens) < had
        if self.history.turns[-1] is turn:
            self.history.cut_answer(turn, len(chat.answer_opening) + len(turn.tokens))
            self._queue.close(chat.close)
        elif len(turn.tokens) < had:
            self._evictions.append(self.history.cut_inside(turn, had - len(turn.tokens), closing))
        self._emit(Truncated, turn=turn.number, heard_text=self.config.decode(turn.tokens))

    def _closing_of(self, turn: Turn) -> int:
        """How many positions of an answer's end are in the thinker's cache."""
        return turn.answer - len(self.config.chat.answer_opening) - len(turn.tokens)

    def _forget(self, what: ForgetControl) -> None:
        """A turn's part leaves the history. What was read after it has seen it."""
        turn = self.history.find(what.turn) or self._queue.find(what.turn)
        part = what.part.value
        about: dict[str, Any] = {"turn": what.turn, "part": part}
        if turn is None or turn is self._turn or (self._answer and self._answer.turn is turn):
            reason = "is being spoken or answered" if turn else "is not in the history"
            self._emit(Error, code=ErrorCode.NOTHING_TO_FORGET, message=f"turn {what.turn} {reason}", **about)
            return
        if part == ("user" if turn.role == "user" else "answer"):
            self._queue.drop(turn)
        if turn in self.history.turns:
            if part == "answer" and self.history.turns[-1] is turn:
                self._queue.close([])
            self._evictions.append(self.history.forget(turn, part, self._spoken_positions()))
        if part == "user":
            self._questions = [question for question in self._questions if question.turn is not turn]
        self._emit(Forgotten, **about)

    def take_evictions(self) -> list[Evictions]:
        """What leaves the caches in this tick before anything else is computed: a client asked for it, mostly."""
        taken, self._evictions = self._evictions, []
        return taken

    def _commit(self, frame: int) -> None:
        if self._turn is None or frame <= self._turn_first:
            self._emit(
                Error, code=ErrorCode.NOTHING_TO_COMMIT, message="commit came, but no sound of a user's turn before it"
            )
            return
        self._end_speech()
        self._end_turn(frame)

    def _listen(self, frame: int) -> None:
        if self._answer:
            self._interrupt("listen")
        self._abandon_turn()
        self._end_speech()
        self._earliest = frame
        self._begin_turn(frame, InputState.PUSHED)
        self._respond_due, self._is_respond_carried = self._is_respond_carried, False

    def _clear(self, frame: int) -> None:
        """Drop the open turn and all audio before a frame; speech that goes on is a new speech from there on."""
        self._abandon_turn()
        if self.detector.is_speech:
            self._emit(SpeechStopped, at_ms=frame * FRAME_MS)
        self.detector.begin_at(frame * FRAME_MS)
        self._ignores_speech = False
        self._earliest = frame

    def _cancel(self) -> None:
        if self._answer is None or self._answer.is_out_of_band:
            self._respond_due = self._is_respond_carried = False
            self._emit(Error, code=ErrorCode.NOTHING_TO_CANCEL, message="cancel came, but no answer is being given")
        else:
            self._interrupt("cancel")

    def _end_speech(self) -> None:
        """The speech so far has been dealt with; what is heard next is another's."""
        if self.detector.is_speech:
            self._emit(SpeechStopped)
        self.detector.end_speech()
        self._ignores_speech = False

    def _abandon_turn(self) -> None:
        """Drop the open turn; a `respond` that waits for its end is carried on to the end of the tick."""
        turn, is_default = self._turn, self._opened_itself
        self._turn = None
        self._is_respond_carried |= self._respond_due
        self._respond_due = False
        if turn:
            self._queue.drop(turn)
            self.history.remove(turn)
            if not is_default:
                self._emit(InputDropped, turn=turn.number)

    def _answer_turn(self, turn: Turn, user: list[int], clip: Clip | None = None) -> None:
        self._queue_answer(turn, [*user, *self.config.chat.close], clip)

    def _queue_answer(
        self, turn: Turn, user: list[int], clip: Clip | None = None, options: TurnSettings | None = None
    ) -> None:
        self._queue.add(turn, user, clip, self.config.chat.answer_opening)
        drawn = self._text_tokens, self._codec_frames
        self._answer = Answer(turn, self.config.detokenizer(), options or self.options.turn, drawn_before=drawn)

    def _interrupt(self, by: str) -> None:
        """Ends the answer where it was heard to, and cuts the history to that."""
        answer, chat = self._answer, self.config.chat
        assert answer is not None
        turn, heard_ms = answer.turn, answer.spoken_ms
        self._answer = None
        heard = math.ceil(heard_ms / 1000 * self.config.heard_tokens_per_s)
        self._cut_tokens(turn, len(turn.tokens) if answer.speech_ended else heard)
        if answer.is_out_of_band:
            self._forget_out_of_band(answer)
        elif answer.is_begun:
            self.history.cut_answer(turn, len(chat.answer_opening) + len(turn.tokens))
            turn.interrupted = True
            self._queue.close(chat.close)
        else:  # its turn stays without an answer
            self._queue.last.opening = []
            if not self._queue.last.user:
                self._queue.drop(turn)
        turn.spoken_ms = heard_ms
        self._emit(
            Interrupted,
            turn=turn.number,
            by=by,
            heard_ms=heard_ms,
            heard_text=self.config.decode(turn.tokens),
            **answer.usage,
            **answer.kind,
        )

    def _cut_tokens(self, turn: Turn, count: int) -> None:
        """Keeps so many text tokens of an answer, whole characters."""
        del turn.tokens[count:]
        while turn.tokens and self.config.decode(turn.tokens[-4:]).endswith("\ufffd"):
            turn.tokens.pop()

    # What is to be prefilled

    @property
    def next_chunk(self) -> PrefillChunk | None:
        """The next chunk of the queue."""
        return self._queue.first

    def next_prefill(self) -> Prefill | None:
        """Takes the next chunk off the queue and counts it as prefilled; the oldest turns make room for it.

        None when nothing is queued, or when its turn does not fit into the context: then the turn is dropped.
        """
        chunk = self.next_chunk
        if chunk is None:
            return None
        incoming = len(chunk.tokens) + self.config.frames_per_tick
        may_evict = not (self._opened_itself and chunk.turn is self._turn)
        evictions, has_room = self._make_room(chunk.turn, incoming, incoming + TALKER_PREFIX, may_evict)
        if not has_room:  # what has left was all that was older: nothing is to be moved
            self._fail_turn(chunk.turn)
            return None
        self._queue.take()
        self.waited_ticks = 0
        prefill = Prefill(chunk, self.history.thinker_length, self.history.talker_length, evictions)
        if chunk.closing:
            self.history.add(self.history.turns[-1], 0, len(chunk.closing))
        self.history.add(chunk.turn, len(chunk.user), len(chunk.aside) + len(chunk.opening))
        if chunk.clip and not chunk.clip.ends_turn:
            self._windows.append(chunk)
        if chunk.opening:
            self._begin_answer()
        return prefill

    def prefill_again(self, frame: int) -> None:
        """The latest turn's windows from a frame on are taken back and queued before its last chunk: its end has moved
        the floor of its log-mel.
        """
        last = self._queue.first
        assert last is not None
        assert last.clip is not None
        again = [window for window in self._windows if window.clip and window.clip.first >= frame]
        self._windows = [window for window in self._windows if window not in again]
        self.history.take_back(last.turn, sum(len(window.user) for window in again))
        for window in reversed(again):
            assert window.clip is not None
            clip = window.clip._replace(turn_end=last.clip.turn_end)
            self._queue.put_back(replace(window, closing=[], clip=clip))

    def _make_room(
        self, present: Turn, thinker: int, talker: int, may_evict: bool = True
    ) -> tuple[tuple[Evictions, ...], bool]:
        """Evicts the oldest turns until so many positions are free: what leaves, and whether it is enough."""
        history, config, spoken = self.history, self.config, self._spoken_positions()
        evictions: list[Evictions] = []
        while (
            history.thinker_length + thinker > config.thinker_positions
            or history.talker_length + spoken + talker > config.talker_positions
        ):
            oldest = history.turns[0] if history.turns else present
            if oldest is present or config.stops_when_full or not may_evict:
                return tuple(evictions), False
            evictions.append(history.evict_oldest(spoken))
            if not history.turns:  # the end of an answer would follow nothing
                self._queue.close([])
            self._questions = [question for question in self._questions if question.turn is not oldest]
            self._emit(TurnsDropped, turn=oldest.number, count=1, left=len(history.turns))
        return tuple(evictions), True

    def _spoken_positions(self) -> int:
        """Positions that the present answer takes in the talker's cache."""
        if self._answer is None or not self._answer.is_begun:
            return 0
        return len(self.config.chat.answer_opening) + TALKER_PREFIX + self._answer.frames

    def _fail_turn(self, turn: Turn) -> None:
        """The turn that is being prefilled does not fit into the context: it is dropped."""
        self._queue.drop(turn)
        has_older = any(other is not turn for other in self.history.turns)
        self.history.remove(turn)
        if self._answer and self._answer.turn is turn:
            self._answer = None
        if turn.is_out_of_band:
            message = "the answer out of band is dropped: the context has no room for it (engine.context_s)"
            self._emit(Error, code=ErrorCode.TURN_TOO_LONG, message=message, out_of_band=True)
            return
        if self._turn is turn or not self._turn:
            if self._turn and not self._opened_itself:
                self._emit(InputDropped, turn=turn.number)
            self._turn = None
            self._ignores_speech = self.detector.is_speech
            self._respond_due = False
            self._earliest = self.clock
        reason = (
            "the context is full (engine.context_full = 'stop'): reset the conversation"
            if self.config.stops_when_full and has_older
            else f"it is longer than the context of {self.config.talker_positions} positions (engine.context_s)"
        )
        self._emit(Error, code=ErrorCode.TURN_TOO_LONG, message=f"the user's turn is dropped: {reason}")

    def _begin_answer(self) -> None:
        """The turn has been prefilled: this tick begins to answer it."""
        answer = self._answer
        assert answer is not None
        answer.is_begun = True
        turn = answer.turn
        span = {"audio_start_ms": turn.sound_ms[0], "audio_end_ms": turn.sound_ms[1]} if turn.sound_ms else {}
        answer.input_tokens = self.history.thinker_length
        answer.input_audio_tokens = sum(other.audio_tokens for other in self.history.turns)
        self._emit(AnswerStarted, turn=turn.number, **span, **answer.kind)
        if answer.is_out_of_band:
            return
        asked = (name for name in ("emotion", "language") if self.options.turn.selected_labels(name) and span)
        self._questions = [Question(turn, name) for name in asked]

    # What the model gives

    def next_decode(self) -> Decode | None:
        """A tick of the answer that has begun; None where there is none, or where the context is full."""
        answer = self._answer
        if answer is None or not answer.is_begun:
            return None
        frames = self.config.frames_per_tick
        evictions, has_room = self._make_room(answer.turn, frames, frames)
        if not has_room:
            self._evictions += evictions  # with the next tick: nothing more is computed in this one
            self._finish("context")
            return None
        return Decode(
            emits_text=not answer.text_ended,
            emits_frames=not answer.speech_ended,
            is_first=not answer.speech_ended and not answer.frames,
            thinker_start=self.history.thinker_length,
            talker_start=self.history.talker_length + self._spoken_positions(),
            text_rng_offset=TEXT_RNG_OFFSET + self._text_tokens,
            codec_rng_offset=self._codec_frames * self.config.codebooks,
            tokens_left=answer.tokens_left,
            evictions=evictions,
        )

    def decoded(self, tokens: Sequence[int], first_codes: Sequence[int]) -> Decoded:
        """Takes what a `Decode` gave: text tokens, and frames by their first codes."""
        self._text_tokens += len(tokens)
        self._codec_frames += len(first_codes)
        assert self._answer is not None
        taken, text = self._take_tokens(tokens)
        frames = self._answer.take_frames(first_codes, self.config.codebook_size)
        self._finish()
        return Decoded(taken, text, frames)

    def _take_tokens(self, tokens: Sequence[int]) -> tuple[list[int], str]:
        """The text tokens up to the end of the text, and the text that they add."""
        answer, chat = self._answer, self.config.chat
        assert answer is not None
        taken = answer.take_tokens(tokens, chat.end)
        if taken and answer.text_ended:
            self._queue.close(chat.close[1:] if taken[-1] == chat.end else chat.close)
        self.history.add(answer.turn, 0, len(taken))
        text = answer.detokenizer.feed(taken)
        if text:
            self._emit(Text, text=text, **answer.kind)
        return taken, text

    def _finish(self, reason: str = "") -> None:
        """Ends the answer if its text and its speech have ended, or for a reason."""
        answer = self._answer
        if answer is None or not (reason or (answer.text_ended and answer.speech_ended)):
            return
        if not answer.text_ended:
            self._queue.close(self.config.chat.close)
        answer.turn.spoken_ms = answer.spoken_ms
        self._emit(
            AnswerDone,
            turn=answer.turn.number,
            spoken_ms=answer.spoken_ms,
            text=self.config.decode(answer.turn.tokens),
            reason=reason or ("length" if answer.is_cut_short else "end"),
            **answer.usage,
            **answer.kind,
        )
        self._answer = None
        if answer.is_out_of_band:
            self._forget_out_of_band(answer)
            return
        self._earliest = max(self._earliest, self.clock - self.options.turn.prefix_padding_ms // FRAME_MS)

    # What the model is asked about the speaker

    @property
    def has_question(self) -> bool:
        """Whether a question about the speaker waits."""
        return bool(self._questions)

    def take_question(self) -> Question:
        """The next question."""
        return self._questions.pop(0)

    def tell_speaker(self, question: Question, label: str, probability: float) -> None:
        """The answer to a question, as an event."""
        assert question.turn.sound_ms is not None
        start_ms, end_ms = question.turn.sound_ms
        self._emit(
            LABELS[question.name],
            label=label,
            probability=round(probability, 4),
            audio_start_ms=start_ms,
            audio_end_ms=end_ms,
        )

    def finish_tick(self) -> None:
        """Report the state at the end of a tick's events, if it changed and the bridge wants reports."""
        if not self.options.report_state:
            return
        is_stale = any(not isinstance(event, (Text, SpeechStarted, SpeechStopped)) for event in self.events)
        if state := self._state_report.changed(self._scalars(), self._entries, is_stale):
            self._emit(StateChanged, state=state)

    def _scalars(self) -> State:
        answer, turn, detector = self._answer, self._turn, self.detector
        speech_ms = detector.started_ms if self.detects_turns and detector.is_speech else None
        state = InputState.OVERFLOWED if self._ignores_speech else self._open_state if turn else InputState.IDLE
        return State(
            pending=tuple(Entry(0, item.role.value, item.text) for item in self._items),
            answering=answer.turn.number if answer and answer.is_begun else None,
            out_of_band=answer is not None and answer.is_out_of_band,
            answer_due=self._respond_due or (answer is not None and not answer.is_begun),
            input=state,
            input_from_ms=self._earliest * FRAME_MS,
            open_turn=turn.number if turn else None,
            open_from_ms=self._turn_first * FRAME_MS if turn else None,
            open_text=turn.typed if turn else "",
            speech_from_ms=speech_ms,
            awaits_silence=self.detects_turns and detector.awaits_silence,
            turn_options=dict(self._turn_options),
            next_turn=self._turns + 1,
        )

    def _entries(self) -> tuple[Entry, ...]:
        """Return the history in order, with the turns that wait for prefill."""
        found: list[Entry] = []
        turns = [*self.history.turns, *(chunk.turn for chunk in self._queue)]
        for turn in dict.fromkeys(turns):
            if turn is self._turn or turn.is_out_of_band:
                continue
            if turn.role != "user":
                found.append(Entry(turn.number, turn.role, turn.typed))
                continue
            if turn.sound_ms:
                found.append(Entry(turn.number, "user", turn.typed, *turn.sound_ms))
            elif turn.typed:
                found.append(Entry(turn.number, "user", turn.typed))
            if turn.answer and not (self._answer and self._answer.turn is turn):
                found.append(Entry(turn.number, "assistant", self.config.decode(turn.tokens)))
        return tuple(found)

    def _emit(self, kind: type[Event], at_ms: int | None = None, **details: Any) -> None:
        self.events.append(kind(at_ms=self.clock_ms if at_ms is None else at_ms, **details))
