"""The answers of a conversation: at most one is queued or in progress."""

from __future__ import annotations

import math
from collections.abc import Sequence

from config.settings import TurnSettings
from contract.events import AnswerDone, AnswerStarted, Interrupted, Text
from engine.cache_layout import TALKER_PREFIX, Evictions
from engine.turn.actions import Decode, Decoded, TurnConfig
from engine.turn.answer_kinds import AnswerKind, Drawn
from engine.turn.events import TickEvents
from engine.turn.generation import Generation, Phase
from engine.turn.history import Answer, History, UserAudio
from engine.turn.prefill_queue import PrefillQueue

TEXT_RNG_OFFSET = 2**40  # first random number for text tokens: far after the ones for codes


class Answers:
    """Owns the answer that is queued or in progress, and the counters of the conversation's random numbers."""

    def __init__(self, config: TurnConfig, history: History, queue: PrefillQueue, events: TickEvents):
        self.current: Generation | None = None
        self.drawn = Drawn()
        self._config, self._history, self._queue, self._events = config, history, queue, events

    @property
    def in_progress(self) -> Generation | None:
        """The answer that has begun."""
        current = self.current
        return current if current and current.phase is Phase.IN_PROGRESS else None

    def request(self, turn: int, options: TurnSettings, kind: AnswerKind, user: UserAudio | None = None) -> None:
        """Queue an answer after what is queued of its turn; `user`: the speech that it answers."""
        assert self.current is None, "an answer is requested only if none is queued or in progress"
        answer = Answer(turn)
        self._queue.add_opening(answer, self._config.chat.answer_opening)
        self.current = Generation(answer, kind, options, self._config.detokenizer(), user)

    def begin(self) -> Generation:
        """Start the queued answer, whose turn has been prefilled."""
        current, history = self.current, self._history
        assert current is not None
        current.phase = Phase.IN_PROGRESS
        current.input_tokens = history.thinker_length
        current.input_audio_tokens = sum(e.audio_tokens for e in history.entries if isinstance(e, UserAudio))
        history.spoken = len(self._config.chat.answer_opening) + TALKER_PREFIX
        self._events.emit(AnswerStarted, **current.kind.event_fields, turn=current.answer.turn, **current.span)
        return current

    def decode(self, evictions: tuple[Evictions, ...]) -> Decode:
        """Return what the tick computes of the answer in progress, after these evictions."""
        current, history = self.in_progress, self._history
        assert current is not None
        return Decode(
            emits_text=not current.text_ended,
            emits_frames=not current.speech_ended,
            is_first=not current.speech_ended and not current.frames,
            thinker_start=history.thinker_length,
            talker_start=history.talker_length + history.spoken,
            text_rng_offset=TEXT_RNG_OFFSET + self.drawn.text_tokens,
            codec_rng_offset=self.drawn.codec_frames * self._config.codebooks,
            tokens_left=current.tokens_left,
            evictions=evictions,
        )

    def decoded(self, tokens: Sequence[int], first_codes: Sequence[int]) -> Decoded:
        """Take what the tick's `Decode` computed: text tokens, and codec frames by their first codes."""
        current = self.in_progress
        assert current is not None
        self.drawn = Drawn(self.drawn.text_tokens + len(tokens), self.drawn.codec_frames + len(first_codes))
        taken, text = self._take_tokens(current, tokens)
        frames = current.take_frames(first_codes, self._config.codebook_size)
        self._history.spoken += frames
        return Decoded(taken, text, frames)

    def interrupt(self, by: str) -> None:
        """End the answer where the user has heard it to."""
        current, config = self.current, self._config
        assert current is not None
        answer = current.answer
        heard = math.ceil(current.spoken_ms / 1000 * config.heard_tokens_per_s)
        tokens = len(answer.tokens) if current.speech_ended else heard
        current.kind.interrupt(answer, tokens, self._history, self._queue, current.phase is Phase.QUEUED)
        text = config.decode(answer.tokens)
        self._leave(current)
        heard_fields = {"heard_ms": current.spoken_ms, "heard_text": text}
        about, fields = current.kind.event_fields, {**heard_fields, **current.usage}
        self._events.emit(Interrupted, **about, turn=answer.turn, by=by, **fields)

    def end(self, reason: str) -> None:
        """End the answer in progress for a reason: `end`, `length` or `context`."""
        current = self.in_progress
        assert current is not None
        answer = current.answer
        if not current.text_ended:
            answer.closing = self._config.chat.close
        text = self._config.decode(answer.tokens)
        fields = {"spoken_ms": current.spoken_ms, "text": text, "reason": reason, **current.usage}
        self._events.emit(AnswerDone, **current.kind.event_fields, turn=answer.turn, **fields)
        self._leave(current)

    def withdraw(self, turn: int) -> Generation | None:
        """Remove and return the queued answer of a turn that is dropped, if there is one."""
        current = self.current
        if current is None or current.answer.turn != turn:
            return None
        self._leave(current)
        return current

    def _leave(self, current: Generation) -> None:
        current.answer.spoken_ms = current.spoken_ms
        self.drawn = current.kind.leave(current.answer, self._history, self._queue, self.drawn)
        self._history.spoken = 0
        self.current = None

    def _take_tokens(self, current: Generation, tokens: Sequence[int]) -> tuple[list[int], str]:
        """Return the text tokens up to the end of the text, and the text that they add."""
        chat, answer = self._config.chat, current.answer
        taken = current.take_tokens(tokens, chat.end)
        if taken and current.text_ended:
            answer.closing = chat.close[1:] if taken[-1] == chat.end else chat.close
        if taken:
            self._history.grow(answer, len(taken))
        text = current.detokenizer.feed(taken)
        if text:
            self._events.emit(Text, **current.kind.event_fields, text=text)
        return taken, text
