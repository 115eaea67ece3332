"""What of a conversation waits to be prefilled, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import pairwise

from engine.clip import Clip
from engine.turn.actions import PrefillChunk
from engine.turn.history import Turn

MAX_TEXT_TOKENS = 100  # of a chunk that is text alone


class PrefillQueue:
    """Chunks of turns; the end of the answer before them goes with the first, or waits until there is one."""

    def __init__(self) -> None:
        self._chunks: deque[PrefillChunk] = deque()
        self._closing: list[int] = []

    def __iter__(self) -> Iterator[PrefillChunk]:
        return iter(self._chunks)

    def __bool__(self) -> bool:
        return bool(self._chunks)

    @property
    def first(self) -> PrefillChunk | None:
        """The next chunk."""
        return self._chunks[0] if self._chunks else None

    @property
    def last(self) -> PrefillChunk:
        """The latest chunk; there must be one."""
        return self._chunks[-1]

    def find(self, number: int) -> Turn | None:
        """The turn of this number, if some of it waits."""
        return next((chunk.turn for chunk in self._chunks if chunk.turn.number == number), None)

    def add(self, turn: Turn, user: list[int], clip: Clip | None = None, opening: Sequence[int] = ()) -> None:
        """A user's tokens, in pieces where they are text alone, and the opening of an answer after them."""
        pieces = [user] if clip else list(_pieces(user))
        for piece in pieces[:-1]:
            self._append(PrefillChunk(turn, [], piece, []))
        self._append(PrefillChunk(turn, [], pieces[-1], list(opening), clip))

    def add_aside(self, turn: Turn, tokens: list[int]) -> None:
        """A message that is not the user's."""
        for piece in _pieces(tokens):
            self._append(PrefillChunk(turn, [], [], [], aside=piece))

    def put_back(self, chunk: PrefillChunk) -> None:
        """A chunk is prefilled again, before all others."""
        self._chunks.appendleft(chunk)

    def take(self) -> PrefillChunk:
        """Takes the next chunk off; there must be one."""
        return self._chunks.popleft()

    def close(self, tokens: list[int]) -> None:
        """These end the answer that is the last in the history."""
        if self._chunks:
            self._chunks[0].closing = tokens
        else:
            self._closing = tokens

    def drop(self, turn: Turn) -> None:
        """Drops what waits of a turn; the end of the answer before it goes with what is next."""
        closing = [token for chunk in self._chunks if chunk.turn is turn for token in chunk.closing]
        self._chunks = deque(chunk for chunk in self._chunks if chunk.turn is not turn)
        if closing:
            self.close(closing)

    def _append(self, chunk: PrefillChunk) -> None:
        chunk.closing, self._closing = self._closing, []
        self._chunks.append(chunk)


def _pieces(tokens: list[int]) -> Iterator[list[int]]:
    """At least one, the last of them maybe empty."""
    borders = [*range(0, max(1, len(tokens)), MAX_TEXT_TOKENS), len(tokens)]
    return (tokens[first:end] for first, end in pairwise(borders))
