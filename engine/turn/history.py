"""The entries of a conversation's history, and the positions that they take in the two KV caches.

The thinker's cache holds all entries, after the prompt. The talker's cache holds the user's entries and, after them,
the speech of the answer in progress, as in transformers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from contract.controls import Part, Role
from engine.cache_layout import Eviction, Evictions
from engine.turn.actions import PrefillChunk, TurnConfig

OUT_OF_BAND = 0  # turn number of entries that leave the history when their answer has ended


@dataclass(eq=False)
class Entry:
    """One part of a turn, with its positions in each cache."""

    turn: int
    thinker: int = field(default=0, init=False)
    talker: int = field(default=0, init=False)
    part: ClassVar[Part] = Part.USER
    reaches_talker: ClassVar[bool] = True


@dataclass(eq=False)
class UserAudio(Entry):
    """The user's speech, and the text that was typed into it."""

    typed: str = ""
    span_ms: tuple[int, int] | None = None  # on the input clock; None while the turn is open
    audio_tokens: int = 0


@dataclass(eq=False)
class UserText(Entry):
    """A text in the user's name."""

    text: str


@dataclass(eq=False)
class Message(Entry):
    """A text in the assistant's or the system's name: the talker does not receive it."""

    role: Role
    text: str
    part = Part.ANSWER
    reaches_talker = False


@dataclass(eq=False)
class Answer(Entry):
    """The model's answer: its opening, its text and the tokens that end it."""

    tokens: list[int] = field(default_factory=list)  # text tokens, without the end
    spoken_ms: int = 0  # duration of the audio that was emitted
    is_interrupted: bool = False
    closing: list[int] = field(default_factory=list)  # tokens that end it and are not in the cache yet
    part = Part.ANSWER
    reaches_talker = False


class Room(NamedTuple):
    """The result of making room in the context."""

    is_enough: bool
    evictions: tuple[Evictions, ...]
    evicted: tuple[int, ...]  # numbers of the turns that were evicted


class History:
    """The entries in the caches, oldest first; it owns both caches' lengths and the turn numbers."""

    def __init__(self, config: TurnConfig, prompt: int):
        """Create a history after a prompt of `prompt` positions in the thinker's cache."""
        self.prompt = prompt
        self.entries: list[Entry] = []
        self.thinker_length = prompt
        self.talker_length = 0
        self.spoken = 0  # positions of the answer in progress in the talker's cache, after `talker_length`
        self.next_turn = 1
        self._config = config
        self._evictions: list[Evictions] = []  # run before the next prefill

    @property
    def turns(self) -> list[int]:
        """Numbers of the turns, oldest first."""
        return list(dict.fromkeys(entry.turn for entry in self.entries))

    @property
    def longest_turn(self) -> int:
        """Maximum tokens of a turn that is the only one in the context: a long prompt takes a part of it."""
        after_prompt = self._config.thinker_positions - self.prompt - self._config.frames_per_tick
        return min(self._config.longest_turn, after_prompt)

    @property
    def closing(self) -> list[int]:
        """Tokens that end the last answer and are not in the cache yet: whatever is prefilled next begins with them."""
        last = self.entries[-1] if self.entries else None
        return last.closing if isinstance(last, Answer) else []

    def new_turn(self) -> int:
        """Return the number of a turn that begins."""
        self.next_turn += 1
        return self.next_turn - 1

    def of(self, turn: int) -> list[Entry]:
        """Return the entries of a turn that are in the caches."""
        return [entry for entry in self.entries if entry.turn == turn]

    def end_of(self, entry: Entry) -> int:
        """Return the position after an entry in the thinker's cache."""
        return self._first_of(entry)[0] + entry.thinker

    def add(self, chunk: PrefillChunk) -> None:
        """Count a chunk as prefilled."""
        if chunk.closing:
            last = self.entries[-1]
            assert isinstance(last, Answer)
            last.closing = []
            self.grow(last, len(chunk.closing))
        if chunk.entry and chunk.content:
            self.grow(chunk.entry, len(chunk.content))
        if chunk.answer:
            self.grow(chunk.answer, len(chunk.opening))

    def grow(self, entry: Entry, positions: int) -> None:
        """Add positions to the last entry, which may be new."""
        if not self.entries or self.entries[-1] is not entry:
            self.entries.append(entry)
        self._resize(entry, positions)

    def take_back(self, entry: Entry, positions: int) -> None:
        """Remove the latest positions of the last entry: they are prefilled again."""
        self._resize(entry, -positions)

    def remove(self, turn: int) -> None:
        """Remove the last turn; a no-op if another one is the last."""
        while self.entries and self.entries[-1].turn == turn:
            entry = self.entries.pop()
            self._resize(entry, -entry.thinker)

    def shorten(self, answer: Answer, tokens: int) -> None:
        """Keep at most `tokens` text tokens of an answer, whole characters only, and its end after them."""
        before = len(answer.tokens)
        closing = answer.thinker - len(self._config.chat.answer_opening) - before
        del answer.tokens[tokens:]
        while answer.tokens and self._config.decode(answer.tokens[-4:]).endswith("\ufffd"):
            answer.tokens.pop()
        removed = before - len(answer.tokens)
        if self.entries[-1] is answer:
            answer.closing = self._config.chat.close
            self._resize(answer, -removed - closing)
        elif removed:
            kept = self.end_of(answer) - closing - removed
            self._evictions.append(self._eviction(kept, removed, 0, 0))
            self._resize(answer, -removed)

    def forget(self, entry: Entry) -> None:
        """Remove one entry. Keys and values of later entries were computed with it and stay."""
        thinker, talker = self._first_of(entry)
        self._evictions.append(self._eviction(thinker, entry.thinker, talker, entry.talker))
        self.entries.remove(entry)
        self._resize(entry, -entry.thinker)

    def make_room(self, present: int, thinker: int, talker: int, may_evict: bool = True) -> Room:
        """Evict the oldest turns, except `present`, until this many positions are free in each cache."""
        config = self._config
        evictions: list[Evictions] = []
        evicted: list[int] = []
        while (
            self.thinker_length + thinker > config.thinker_positions
            or self.talker_length + self.spoken + talker > config.talker_positions
        ):
            oldest = self.entries[0].turn if self.entries else present
            if oldest == present or config.stops_when_full or not may_evict:
                return Room(False, tuple(evictions), tuple(evicted))
            leaving = self.of(oldest)
            positions = sum(entry.thinker for entry in leaving), sum(entry.talker for entry in leaving)
            evictions.append(self._eviction(self.prompt, positions[0], 0, positions[1]))
            evicted.append(oldest)
            for entry in leaving:
                self.entries.remove(entry)
                self._resize(entry, -entry.thinker)
        return Room(True, tuple(evictions), tuple(evicted))

    def evict_later(self, evictions: tuple[Evictions, ...]) -> None:
        """Run these evictions before the next prefill."""
        self._evictions += evictions

    def take_evictions(self) -> list[Evictions]:
        """Remove and return the evictions that run before the next prefill."""
        taken, self._evictions = self._evictions, []
        return taken

    def transcript(self) -> Iterator[dict[str, Any]]:
        """Yield the entries as text; the model does not transcribe speech, which is given by its time."""
        for entry in self.entries:
            if entry.turn == OUT_OF_BAND or not entry.thinker:
                continue
            match entry:
                case UserAudio():
                    span = dict(zip(("audio_start_ms", "audio_end_ms"), entry.span_ms or (), strict=False))
                    yield {"role": "user", **span, **({"text": entry.typed} if entry.typed else {})}
                case UserText():
                    yield {"role": "user", "text": entry.text}
                case Message():
                    yield {"role": entry.role.value, "text": entry.text}
                case Answer():
                    text = self._config.decode(entry.tokens)
                    yield {"role": "assistant", "text": text, "interrupted": entry.is_interrupted}

    def _first_of(self, entry: Entry) -> tuple[int, int]:
        """Return an entry's first position in the thinker's cache and in the talker's."""
        earlier = self.entries[: next(i for i, other in enumerate(self.entries) if other is entry)]
        return self.prompt + sum(other.thinker for other in earlier), sum(other.talker for other in earlier)

    def _eviction(self, thinker: int, thinker_positions: int, talker: int, talker_positions: int) -> Evictions:
        """Return an eviction of positions after the first `thinker` and the first `talker` of each cache."""
        return Evictions(
            Eviction(thinker, thinker_positions, self.thinker_length),
            Eviction(talker, talker_positions, self.talker_length + self.spoken),
        )

    def _resize(self, entry: Entry, positions: int) -> None:
        entry.thinker += positions
        self.thinker_length += positions
        if entry.reaches_talker:
            entry.talker += positions
            self.talker_length += positions
