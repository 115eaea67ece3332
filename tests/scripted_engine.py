"""The engine's turn conversation with a scripted model: sound is speech or silence, answers have drawn lengths."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from config import Settings
from config.options import options_of
from config.settings import CODE2WAV_DELAY
from contract.events import AnswerDone, AnswerStarted, Committed, Event, Text, event_of
from engine.turn.actions import TurnConfig
from engine.turn.conversation import TurnConversation
from engine.turn.history import Answer, Message, UserAudio, UserText
from frontend.tick import TickIn, TickOut

TICK_MS = 320
TICK_FRAMES = 32  # log-mel frames
TICK_SAMPLES = 7680  # samples of a tick at 24 kHz
FRAME_SAMPLES = 1920  # samples of a codec frame
VAD_SAMPLES = 512  # samples of a window of the VAD, at 16 kHz
VOICES = ["ethan"]
END, STOP = 2, 512  # the text token and the codec code that end an answer
LARGE_CONTEXT = 100_000
ANSWER_TICKS = (0, 1, 2, 4, 7)  # lengths of answers


class Chat:
    """A chat template of few tokens; a character of text is a token."""

    audio, end = 7, END
    answer_opening, before_audio, after_audio = [3, 4, 5], [10], [11]
    user_opening, close = [12, 13], [END, 14]

    def typed(self, text: str, after_audio: bool = False) -> list[int]:
        return [20] * len(text) if after_audio else [12, *[20] * len(text)]

    def message(self, role: str, text: str) -> list[int]:
        return [15, *[20] * len(text), *self.close]


def decode(tokens: list[int]) -> str:
    return "".join(f"w{token} " for token in tokens if token != END)


class Words:
    """A detokenizer of one word per token."""

    def feed(self, tokens: list[int]) -> str:
        return decode(tokens)


CONFIG = TurnConfig(
    chat=Chat(),
    decode=decode,
    detokenizer=Words,
    audio_tokens=lambda frames: frames // 8,
    window_frames=100,
    thinker_positions=LARGE_CONTEXT,
    talker_positions=LARGE_CONTEXT,
    frames_per_tick=4,
    codebooks=16,
    codebook_size=STOP,
    heard_tokens_per_s=3.5,
    stops_when_full=False,
    expect_possible=lambda _: None,
)


@cache
def settings() -> Settings:
    return Settings.load(environ={})


@dataclass
class ScriptedAnswer:
    """One answer of the engine, as it was emitted."""

    is_out_of_band: bool
    ends_in_ticks: int
    text: str = ""
    sound: bytes = b""


class ScriptedEngine:
    """The engine's conversation with a model that hears sound as speech and gives answers of drawn lengths."""

    def __init__(self, chance: random.Random, config: TurnConfig):
        self._chance = chance
        self._config = config
        self.conversation: TurnConversation | None = None
        self.answers: list[ScriptedAnswer] = []
        self.events: Counter[str] = Counter()
        self.clears = 0  # `clear` controls received
        self._cleared_ms = 0  # audio before this belongs to no turn
        self._answer: ScriptedAnswer | None = None
        self._prefilled_again = 0  # number of the latest turn whose windows were prefilled again
        self._late_sound = np.zeros(CODE2WAV_DELAY, np.int16)
        self._tokens = 0

    def tick(self, tick: TickIn) -> TickOut:
        """Compute one tick as the engine does; options, controls and events pass through their wire format."""
        tick = TickIn.from_parameters(tick.pcm, tick.parameters, TICK_MS, start=tick.start)
        if tick.start:
            options = options_of(tick.options, settings(), VOICES)
            self.conversation = TurnConversation(0, options, self._config, [1] * 5)
        one = self.conversation
        assert one is not None
        windows = np.frombuffer(tick.pcm, np.int16).reshape(-1, VAD_SAMPLES).any(axis=1)
        probabilities = [0.9 if is_speech else 0.0 for is_speech in windows] if one.detects_turns else []
        one.advance(TICK_FRAMES, tick.controls, probabilities)
        one.take_evictions()
        self._prefill(one)
        if tick.controls.clear:
            self.clears += 1
            self._cleared_ms = one.clock_ms - TICK_MS
        before = len(one.events)
        self._note(one.events)
        frames = self._decode(one)
        self._note(one.events[before:])
        self._expect_sums()
        for event in one.events:
            self.events[event.type] += 1
        text = "".join(event.text for event in one.events if isinstance(event, Text))
        return TickOut(self._sound(frames), text, [event_of(json.loads(json.dumps(e.to_json()))) for e in one.events])

    def _prefill(self, one: TurnConversation) -> None:
        """Prefill some of the queue, often all of it; windows of a turn again, as its last clip may require."""
        budget = self._chance.choice([1, 2, 1000, 1000, 1000])
        for _ in range(budget):
            chunk = one.next_chunk
            if chunk is None:
                return
            is_last = chunk.clip is not None and chunk.clip.ends_turn
            if is_last and chunk.turn > self._prefilled_again:
                self._prefilled_again = chunk.turn
                again = self._chance.randrange(4) * self._config.window_frames
                one.prefill_again(chunk.clip.turn_first + again)
            if one.next_prefill() is None:
                return

    def _decode(self, one: TurnConversation) -> list[np.ndarray]:
        """Emit a tick of the answer; the sound of its codec frames."""
        decoding = one.next_decode()
        if decoding is None:
            return []
        answer = self._answer
        assert answer is not None
        ends = answer.ends_in_ticks == 0
        answer.ends_in_ticks -= 1
        tokens: list[int] = []
        if decoding.emits_text:
            tokens = [100 + self._tokens + number for number in range(4)]
            self._tokens += 4
            if ends:
                tokens[self._chance.randrange(4)] = END
        codes = []
        if decoding.emits_frames:
            codes = [1] * 4
            if ends:
                codes[self._chance.randrange(4)] = STOP
        decoded = one.decoded(tokens, codes)
        answer.text += decoded.text
        begin = len(answer.sound) // 2 + 1
        samples = np.arange(begin, begin + decoded.frames * FRAME_SAMPLES) % 30_000 + len(self.answers) % 1000
        answer.sound += samples.astype(np.int16).tobytes()
        return np.split(samples.astype(np.int16), decoded.frames) if decoded.frames else []

    def _note(self, events: Sequence[Event]) -> None:
        for event in events:
            match event:
                case AnswerStarted():
                    self._answer = ScriptedAnswer(event.out_of_band, self._chance.choice(ANSWER_TICKS))
                    self.answers.append(self._answer)
                case AnswerDone():
                    assert self._answer
                    assert event.text == self._answer.text
                    assert event.spoken_ms * 48 == len(self._answer.sound)
                case Committed(audio_start_ms=int()):
                    assert event.audio_start_ms >= self._cleared_ms

    def _sound(self, frames: list[np.ndarray]) -> bytes:
        """Return a tick of code2wav, which is behind its frames by `CODE2WAV_DELAY`."""
        speech = np.concatenate([*frames, np.zeros(TICK_SAMPLES, np.int16)])[:TICK_SAMPLES]
        sound = np.concatenate([self._late_sound, speech])
        self._late_sound = sound[TICK_SAMPLES:]
        return sound[:TICK_SAMPLES].tobytes()

    def _expect_sums(self) -> None:
        """Assert that the length of each cache is the sum of the parts of the history."""
        history = self.conversation.history
        assert history.thinker_length == history.prompt + sum(entry.thinker for entry in history.entries)
        assert history.talker_length == sum(entry.talker for entry in history.entries)

    def parts(self) -> Counter[tuple[str, str]]:
        """Return role and text of each part of the history; the text of sound is empty."""
        found: Counter[tuple[str, str]] = Counter()
        for entry in self.conversation.history.entries if self.conversation else ():
            match entry:
                case UserAudio():
                    found["user", entry.typed] += 1
                case UserText():
                    found["user", entry.text] += 1
                case Message():
                    found[entry.role.value, entry.text] += 1
                case Answer():
                    found["assistant", decode(entry.tokens)] += 1
        return found
