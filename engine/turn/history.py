"""What a conversation's caches hold, turn by turn: a user's part and, as far as it was heard, the answer to it.

The thinker's cache holds both; the talker's holds the users' parts alone, and while it speaks the present answer behind
them, as in transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(eq=False)
class Turn:
    """A user's turn and its answer, with the positions that both take."""

    sound_ms: tuple[int, int] | None = None  # the user's speech, on the input clock
    typed: str = ""
    user: int = 0  # positions of the user's part, in the thinker's cache and in the talker's
    answer: int = 0  # positions of the answer in the thinker's cache, its opening and its end included
    tokens: list[int] = field(default_factory=list)  # text of the answer, without its end
    interrupted: bool = False

    @property
    def thinker(self) -> int:
        """Positions in the thinker's cache."""
        return self.user + self.answer


class History:
    """The turns that are in the caches, oldest first, behind an opening in the thinker's."""

    def __init__(self, opening: int):
        self.opening = opening
        self.turns: list[Turn] = []

    @property
    def thinker(self) -> int:
        """Positions that are taken in the thinker's cache."""
        return self.opening + sum(turn.thinker for turn in self.turns)

    @property
    def talker(self) -> int:
        """Positions that are taken in the talker's cache by users' parts."""
        return sum(turn.user for turn in self.turns)

    def user_end(self, turn: Turn) -> int:
        """The position in the thinker's cache behind a turn's user part."""
        place = next(i for i, other in enumerate(self.turns) if other is turn)
        return self.opening + sum(other.thinker for other in self.turns[:place]) + turn.user

    def transcript(self, decode: Callable[[list[int]], str]) -> Iterator[dict[str, Any]]:
        """The turns in words: the model does not write down what it hears, so speech is given by its time."""
        for turn in self.turns:
            said: dict[str, Any] = {"role": "user"}
            if turn.sound_ms:
                said |= {"audio_start_ms": turn.sound_ms[0], "audio_end_ms": turn.sound_ms[1]}
            if turn.typed:
                said["text"] = turn.typed
            yield said
            if turn.answer:
                yield {"role": "assistant", "text": decode(turn.tokens), "interrupted": turn.interrupted}
