"""The chunks of a conversation that wait to be prefilled, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

from contract.controls import Part
from engine.clip import Clip
from engine.turn.actions import PrefillChunk
from engine.turn.history import Answer, Entry

MAX_TEXT_TOKENS = 100  # maximum tokens of a chunk without audio


class PrefillQueue:
    """The waiting chunks, and the windows of the latest user's turn that were prefilled before its end."""

    def __init__(self) -> None:
        self._chunks: deque[PrefillChunk] = deque()
        self._windows: list[PrefillChunk] = []

    def __iter__(self) -> Iterator[PrefillChunk]:
        return iter(self._chunks)

    def __bool__(self) -> bool:
        return bool(self._chunks)

    @property
    def first(self) -> PrefillChunk | None:
        """The next chunk."""
        return self._chunks[0] if self._chunks else None

    def holds(self, turn: int) -> bool:
        """Return True if a chunk of a turn waits."""
        return any(chunk.turn == turn for chunk in self._chunks)

    def add(self, entry: Entry, tokens: list[int], clip: Clip | None = None) -> None:
        """Append tokens of an entry, in several chunks if they are a long text."""
        for piece in [tokens] if clip else _pieces(tokens):
            self._chunks.append(PrefillChunk(entry.turn, entry, piece, clip=clip))

    def add_opening(self, answer: Answer, opening: Sequence[int]) -> None:
        """Append the opening of an answer: to the last chunk, if it is the user's part of the turn."""
        last = self._chunks[-1] if self._chunks else None
        if last is None or last.turn != answer.turn or last.entry is None or not last.entry.reaches_talker:
            last = PrefillChunk(answer.turn, None, [])
            self._chunks.append(last)
        last.answer, last.opening = answer, list(opening)

    def withdraw_opening(self) -> None:
        """Remove the opening of the queued answer, which is the end of the queue."""
        last = self._chunks[-1]
        last.answer, last.opening = None, []
        if last.entry is None:
            self._chunks.pop()

    def take(self) -> PrefillChunk:
        """Remove and return the next chunk; there must be one."""
        chunk = self._chunks.popleft()
        if chunk.clip:
            of_turn = [window for window in self._windows if window.turn == chunk.turn]
            self._windows = [] if chunk.clip.ends_turn else [*of_turn, chunk]
        return chunk

    def again(self, frame: int) -> int:
        """Queue the windows of the next chunk's turn from a frame on again; return the number of their tokens.

        The next chunk is the last one of its turn, whose end has moved the floor of the turn's log-mel.
        """
        last = self._chunks[0]
        assert last.clip is not None
        again = [window for window in self._windows if window.clip and window.clip.first >= frame]
        self._windows = [window for window in self._windows if window not in again]
        for window in reversed(again):
            assert window.clip is not None
            self._chunks.appendleft(replace(window, clip=window.clip._replace(turn_end=last.clip.turn_end)))
        return sum(len(window.content) for window in again)

    def end_turn(self, turn: int, frame: int) -> None:
        """Set the end of a turn in its waiting clips: the floor of their log-mel is the whole turn's."""
        for chunk in self._chunks:
            if chunk.turn == turn and chunk.clip:
                chunk.clip = chunk.clip._replace(turn_end=frame)

    def drop_part(self, turn: int, part: Part) -> None:
        """Drop the chunks of one part of a turn."""
        self._chunks = deque(c for c in self._chunks if c.turn != turn or not c.entry or c.entry.part is not part)

    def drop(self, turn: int) -> None:
        """Drop the chunks of a turn."""
        self._chunks = deque(chunk for chunk in self._chunks if chunk.turn != turn)
        self._windows = [window for window in self._windows if window.turn != turn]


def _pieces(tokens: list[int]) -> Iterator[list[int]]:
    borders = [*range(0, max(1, len(tokens)), MAX_TEXT_TOKENS), len(tokens)]
    return (tokens[first:end] for first, end in pairwise(borders))
