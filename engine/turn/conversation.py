"""One conversation in the dialect `turn`: who speaks, what is still to be read, what the answer has come to."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from config.settings import CODEC_FRAME_MS
from engine.conversation import Conversation, Event, Heard
from engine.options import Options
from engine.text import TextStream
from engine.turn.chat import Chat
from engine.turn.detector import Detector
from engine.turn.ear import Ear, lengthen
from engine.turn.history import History, Turn
from engine.turn.vad import VadState

FRAME_MS = 10  # of a log-mel frame
LONGEST_TEXT = 100  # tokens of a piece that is text alone
RECENT_MS = 1000  # of sound that is remembered beside what the options need


@dataclass
class Piece:
    """Tokens to be read at once, and the clip that stands behind the audio tokens among them."""

    turn: Turn
    closing: list[int]  # the end of the answer before
    user: list[int]  # of the user's turn: the talker hears them too
    opening: list[int]  # of the answer, in the last piece of a turn
    clip: Tensor | None = None  # [128, frames], a window of the audio encoder at most

    @property
    def tokens(self) -> list[int]:
        """All of them, in order."""
        return [*self.closing, *self.user, *self.opening]


@dataclass
class Answer:
    """An answer that is being given."""

    turn: Turn
    text: TextStream
    frames: int = 0  # codec frames given so far
    is_written: bool = False  # its text has ended
    is_spoken: bool = False  # its speech has ended


@dataclass
class Rules:
    """What follows from checkpoint and settings, alike for all conversations."""

    chat: Chat
    tokenizer: Any
    window_frames: int  # of the audio encoder's attention: what lies in a finished one never changes
    window_tokens: int
    audio_tokens: Callable[[int], int]  # frames of a clip -> its audio tokens
    heard_tokens_per_s: float
    longest_turn: int  # tokens of a turn that fits into the context alone


@dataclass
class TurnConversation(Conversation):
    """The host's side of a conversation. A tick is: `hear`, then the device reads the pieces and speaks, then `say`."""

    rules: Rules
    history: History
    ear: Ear
    detector: Detector
    vad: VadState = field(default_factory=VadState)
    pieces: deque[Piece] = field(default_factory=deque)
    answer: Answer | None = None
    events: list[Event] = field(default_factory=list)
    asks: list[tuple[Turn, str]] = field(default_factory=list)  # questions about a turn's speaker, not yet answered
    written: int = 0  # text tokens drawn since the conversation began
    spoken: int = 0  # codec frames drawn

    _open: Turn | None = None  # the user's turn that is being heard ...
    _first: int = 0  # ... from this frame on ...
    _read: int = 0  # ... and read up to this one
    _floor: int = 0  # no later turn begins before this frame
    _closing: list[int] = field(default_factory=list)  # what ends the last answer in the history, not yet read
    _is_deaf: bool = False  # to speech that has filled the context, until it ends
    _is_waiting: bool = False  # the open turn began by itself: nobody may have spoken yet

    @classmethod
    def begin(cls, slot: int, options: Options, rules: Rules, opening: int) -> TurnConversation:
        """A new one, whose thinker's cache holds `opening` positions."""
        turn = options.turn
        recent_ms = turn.prefix_padding_ms + turn.interrupt_after_ms + turn.silence_duration_ms + RECENT_MS
        return cls(slot, options, rules, History(opening), Ear(recent_ms // FRAME_MS), Detector(turn))

    @property
    def clock_ms(self) -> int:
        """The input clock: how much sound has come in."""
        return self.ear.clock * FRAME_MS

    @property
    def detects(self) -> bool:
        """Whether turns are told from the sound; else by commits."""
        return self.options.turn.detection == "server_vad"

    def hear(self, heard: Heard, probabilities: list[float]) -> None:
        """A tick's sound and controls: afterwards `pieces` holds what is to be read now."""
        controls, begin = heard.controls, self.ear.clock
        self.events = []
        self.ear.hear(heard.log_mel)
        if controls.cancel:
            self._cancel()
        if controls.listen:
            self._listen(begin)
        if controls.message:
            self._type(controls.message)
        if self.detects:
            self._follow(probabilities)
        elif self._open is None and self.answer is None:
            self._begin_turn(begin)
            self._is_waiting = True
        if controls.commit:
            self._commit()
        self._read_windows(self.ear.clock)
        self.ear.forget(self._read if self._open else None)
        if controls.transcript:
            self._tell("transcript", turns=list(self.history.transcript(self._decode)))

    def began_by_itself(self, turn: Turn) -> bool:
        """Whether a turn is being heard that nobody has begun: no older one leaves for its sake."""
        return self._is_waiting and turn is self._open

    def note_read(self, piece: Piece) -> None:
        """The first of the pieces is in the caches."""
        self.pieces.popleft()
        turns = self.history.turns
        if piece.closing:
            turns[-1].answer += len(piece.closing)
        if not turns or turns[-1] is not piece.turn:
            turns.append(piece.turn)
        piece.turn.user += len(piece.user)
        piece.turn.answer += len(piece.opening)

    def fail_turn(self, reason: str) -> None:
        """The turn that is being read does not fit into the context: it is forgotten."""
        piece = self.pieces[0]
        self._closing = piece.closing or self._closing
        self.pieces.clear()
        self._forget(piece.turn)
        self._open = self.answer = None
        self._is_deaf = self.detector.is_speech
        self._floor = self.ear.clock
        self._tell("error", code="turn_too_long", message=f"the user's turn is forgotten: {reason}")

    def note_dropped(self, turn: Turn) -> None:
        """The oldest turn has left the caches."""
        self._forget(turn)
        if not self.history.turns:  # its end would follow nothing
            self._closing = []
            for piece in self.pieces:
                piece.closing = []
        self.asks = [ask for ask in self.asks if ask[0] is not turn]
        self._tell("turns_dropped", count=1, left=len(self.history.turns))

    def begin_answer(self) -> None:
        """The turn has been read: this tick begins to answer it."""
        assert self.answer is not None
        turn = self.answer.turn
        span = {"audio_start_ms": turn.sound_ms[0], "audio_end_ms": turn.sound_ms[1]} if turn.sound_ms else {}
        self._tell("answer_started", **span)
        self.asks = [(turn, name) for name in ("emotion", "language") if self.options.turn.asked(name) and span]

    def tell_perceived(self, turn: Turn, name: str, label: str, probability: float) -> None:
        """The answer to a question about a turn's speaker."""
        assert turn.sound_ms is not None
        start, end = turn.sound_ms
        self._tell(name, label=label, probability=round(probability, 4), audio_start_ms=start, audio_end_ms=end)

    def write(self, tokens: list[int]) -> tuple[list[int], str]:
        """Takes the text tokens that were drawn and fed, up to the end; returns them, and the text they add."""
        answer = self.answer
        assert answer is not None
        taken: list[int] = []
        for token in tokens:
            taken.append(token)
            if token == self.rules.chat.end:
                answer.is_written, self._closing = True, self.rules.chat.close[1:]
            else:
                answer.turn.tokens.append(token)
                if len(answer.turn.tokens) == self.options.turn.answer_tokens:
                    answer.is_written, self._closing = True, self.rules.chat.close
            if answer.is_written:
                break
        answer.turn.answer += len(taken)
        if taken and not answer.turn.tokens:
            answer.is_spoken = True  # it has nothing to say
        text = answer.text.feed(taken)
        if text:
            self._tell("text", text=text)
        return taken, text

    def speak(self, first_codes: list[int], codes: int) -> int:
        """Takes a tick's frames by their first codes, those below `codes` are speech; returns how many are spoken."""
        answer = self.answer
        assert answer is not None
        if answer.is_spoken:
            return 0
        count = 0
        for code in first_codes:
            if code >= codes or answer.frames + 1 >= self.options.turn.answer_frames:  # transformers hears no last one
                answer.is_spoken = True
                break
            count, answer.frames = count + 1, answer.frames + 1
        return count

    def finish(self, reason: str = "") -> None:
        """Ends the answer if its text and its speech have ended, or for a reason."""
        answer = self.answer
        if answer is None or not (reason or (answer.is_written and answer.is_spoken)):
            return
        if not answer.is_written:
            self._closing = self.rules.chat.close
        self._tell(
            "answer_done",
            spoken_ms=answer.frames * CODEC_FRAME_MS,
            text=self._decode(answer.turn.tokens),
            reason=reason or "end",
        )
        self.answer = None
        self._floor = max(self._floor, self.ear.clock - self.options.turn.prefix_padding_ms // FRAME_MS)

    def _follow(self, probabilities: list[float]) -> None:
        detector = self.detector
        was_speech, stopped_ms = detector.is_speech, detector.stopped_ms
        detector.feed(probabilities)
        stopped = not detector.is_speech and detector.stopped_ms > stopped_ms
        if not was_speech and (detector.is_speech or stopped):
            self._tell("speech_started", at_ms=detector.started_ms)
        if self._is_deaf:
            self._is_deaf = not stopped
        elif detector.is_speech or stopped:
            turn = self.options.turn
            begun = self.answer and not self.pieces  # in an earlier tick
            if begun and turn.interrupt and detector.spoken_ms >= turn.interrupt_after_ms:
                self._interrupt("speech")
            if not self.answer and not self._open and detector.voiced_until_ms > self._floor * FRAME_MS:
                self._begin_turn(detector.started_ms // FRAME_MS - turn.prefix_padding_ms // FRAME_MS)
        if stopped:
            self._tell("speech_stopped", at_ms=detector.stopped_ms)
            if self._open:
                self._end_turn(detector.stopped_ms // FRAME_MS)

    def _begin_turn(self, frame: int) -> None:
        self._open, self._is_waiting = Turn(), False
        self._first = self._read = max(frame, self._floor, self.ear.first)

    def _end_turn(self, end: int) -> None:
        """Queues what is left to read of the open turn, and the answer."""
        turn = self._open
        assert turn is not None
        self._read_windows(end)
        turn.sound_ms = (self._first * FRAME_MS, end * FRAME_MS)
        chat, clip = self.rules.chat, self.ear.clip(self._read, end)
        if self._read == self._first:
            clip = lengthen(clip)
        sound = self._sound([chat.audio] * self.rules.audio_tokens(clip.shape[1]))
        self._floor, self._open = end, None
        if turn.typed:
            self._queue(turn, [*sound, *chat.after_sound], clip)
            self._answer(turn, chat.typed(turn.typed, after_sound=True))
        else:
            self._answer(turn, [*sound, *chat.after_sound], clip)

    def _read_windows(self, end: int) -> None:
        """Queues the windows of the open turn that are complete."""
        window = self.rules.window_frames
        while self._open and end - self._read >= window:
            clip = self.ear.clip(self._read, self._read + window)
            self._queue(self._open, self._sound([self.rules.chat.audio] * self.rules.window_tokens), clip)
            self._read += window

    def _sound(self, tokens: list[int]) -> list[int]:
        """Audio tokens, and before the first of a turn its opening."""
        chat = self.rules.chat
        return tokens if self._read > self._first else [*chat.user_opening, *chat.before_sound, *tokens]

    def _type(self, message: str) -> None:
        """A typed message: part of the turn that is being spoken, else a turn of its own."""
        if self.answer:
            self._interrupt("message")
        if self._open and self.detector.is_speech:
            self._open.typed = f"{self._open.typed}\n{message}" if self._open.typed else message
            return
        if self._open:
            self._abandon()
            self._floor = self.ear.clock
        tokens = self.rules.chat.typed(message)
        if len(tokens) > self.rules.longest_turn:
            reason = f"it is {len(tokens)} tokens long, expected at most {self.rules.longest_turn} (engine.context_s)"
            self._tell("error", code="turn_too_long", message=f"the user's message is forgotten: {reason}")
        else:
            self._answer(Turn(typed=message), tokens)

    def _commit(self) -> None:
        if self._open is None or self.ear.clock <= self._first:
            self._tell(
                "error", code="nothing_to_commit", message="commit came, but no sound of a user's turn before it"
            )
            return
        self._rest()
        self._end_turn(self.ear.clock)

    def _listen(self, frame: int) -> None:
        if self.answer:
            self._interrupt("listen")
        self._abandon()
        self._rest()
        self._floor = frame
        self._begin_turn(frame)

    def _rest(self) -> None:
        """Speech so far has been dealt with; what is heard next is another's."""
        if self.detector.is_speech:
            self._tell("speech_stopped")
        self.detector.rest()
        self._is_deaf = False

    def _cancel(self) -> None:
        if self.answer is None:
            self._tell("error", code="nothing_to_cancel", message="cancel came, but no answer is being given")
        else:
            self._interrupt("cancel")

    def _answer(self, turn: Turn, user: list[int], clip: Tensor | None = None) -> None:
        chat = self.rules.chat
        self._queue(turn, [*user, *chat.close], clip, chat.answer_opening)
        self.answer = Answer(turn, TextStream(self.rules.tokenizer))

    def _queue(self, turn: Turn, user: list[int], clip: Tensor | None, opening: list[int] | None = None) -> None:
        closing, self._closing = self._closing, []
        if clip is None:
            last = (len(user) - 1) // LONGEST_TEXT * LONGEST_TEXT
            for first in range(0, last, LONGEST_TEXT):
                self.pieces.append(Piece(turn, closing, user[first : first + LONGEST_TEXT], []))
                closing = []
            user = user[last:]
        self.pieces.append(Piece(turn, closing, user, opening or [], clip))

    def _interrupt(self, by: str) -> None:
        """Ends the answer where it was heard to, and cuts the history to that."""
        answer = self.answer
        assert answer is not None
        turn, heard_ms = answer.turn, answer.frames * CODEC_FRAME_MS
        if not answer.is_spoken:
            self._cut(turn, math.ceil(heard_ms / 1000 * self.rules.heard_tokens_per_s))
        turn.answer = len(self.rules.chat.answer_opening) + len(turn.tokens)
        turn.interrupted = True
        self._closing = self.rules.chat.close
        self.answer = None
        self._tell("interrupted", by=by, heard_ms=heard_ms, heard_text=self._decode(turn.tokens))

    def _cut(self, turn: Turn, tokens: int) -> None:
        """Keeps so many text tokens of an answer, whole characters."""
        del turn.tokens[tokens:]
        while turn.tokens and self._decode(turn.tokens[-4:]).endswith("\ufffd"):
            turn.tokens.pop()

    def _abandon(self) -> None:
        """Forgets the open turn."""
        turn, self._open = self._open, None
        if turn:
            self._forget(turn)

    def _forget(self, turn: Turn) -> None:
        self.history.turns = [other for other in self.history.turns if other is not turn]

    def _decode(self, tokens: list[int]) -> str:
        text: str = self.rules.tokenizer.decode(tokens, skip_special_tokens=True)
        return text

    def _tell(self, kind: str, at_ms: int | None = None, **details: Any) -> None:
        self.events.append({"type": kind, "at_ms": self.clock_ms if at_ms is None else at_ms, **details})
