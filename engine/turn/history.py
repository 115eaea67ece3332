"""What a conversation's caches hold, turn by turn: a user's part and, as far as it was heard, the answer to it.

The thinker's cache holds both; the talker's holds the users' parts alone and, while it speaks, the present answer after
them, as in transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from engine.cache_layout import Eviction, Evictions


@dataclass(eq=False)
class Turn:
    """A user's turn and its answer, with the positions that both take.

    Either may be missing. A message that a client adds in the assistant's or the system's name takes the answer's
    place.
    """

    number: int = 0  # by which clients name it
    role: str = "user"  # or, of a message that was added: assistant, system
    sound_ms: tuple[int, int] | None = None  # the user's speech, on the input clock
    typed: str = ""
    audio_tokens: int = 0  # among the user's
    user: int = 0  # positions of the user's part, in the thinker's cache and in the talker's
    answer: int = 0  # positions of the answer in the thinker's cache, its opening and its end included
    tokens: list[int] = field(default_factory=list)  # text of the answer, without its end
    spoken_ms: int = 0  # sound of the answer that was emitted
    interrupted: bool = False
    is_out_of_band: bool = False  # it leaves when it has been answered


class History:
    """The turns that are in the caches, oldest first, after the prompt in the thinker's."""

    def __init__(self, prompt: int):
        """`prompt`: its positions."""
        self.prompt = prompt
        self.turns: list[Turn] = []
        self.thinker_length = prompt
        self.talker_length = 0  # of users' parts

    def add(self, turn: Turn, user: int, answer: int) -> None:
        """So many positions more of the last turn, which may be new."""
        if not self.turns or self.turns[-1] is not turn:
            self.turns.append(turn)
        turn.user += user
        turn.answer += answer
        self.thinker_length += user + answer
        self.talker_length += user

    def cut_answer(self, turn: Turn, positions: int) -> None:
        """The last turn's answer takes so many positions, no more."""
        self.thinker_length += positions - turn.answer
        turn.answer = positions

    def take_back(self, turn: Turn, user: int) -> None:
        """So many positions fewer of the last turn's user part, the latest: they will be prefilled again."""
        turn.user -= user
        self.thinker_length -= user
        self.talker_length -= user

    def remove(self, turn: Turn) -> None:
        """Forgets the last turn, wholly; a no-op if none of it is here."""
        if self.turns and self.turns[-1] is turn:
            self.turns.pop()
            self.thinker_length -= turn.user + turn.answer
            self.talker_length -= turn.user

    def find(self, number: int) -> Turn | None:
        """The turn of this number; None if it has left, or is not here yet."""
        return next((turn for turn in self.turns if turn.number == number), None)

    def cut_inside(self, turn: Turn, positions: int, closing: int) -> Evictions:
        """So many positions leave an answer that others follow, those before the `closing` ones that end it."""
        kept = self._begin(turn) + turn.user + turn.answer - closing - positions
        leaving = Evictions(Eviction(kept, positions, self.thinker_length), Eviction(0, 0, self.talker_length))
        turn.answer -= positions
        self.thinker_length -= positions
        return leaving

    def forget(self, turn: Turn, part: str, spoken: int) -> Evictions:
        """One part of a turn leaves, `user` or `answer`; see `evict_oldest` for `spoken`."""
        begin = self._begin(turn)
        talker_begin = sum(other.user for other in self.turns[: self.turns.index(turn)])
        if part == "user":
            thinker = Eviction(begin, turn.user, self.thinker_length)
            talker = Eviction(talker_begin, turn.user, self.talker_length + spoken)
            self.talker_length -= turn.user
            turn.user, turn.audio_tokens, turn.sound_ms, turn.typed = 0, 0, None, ""
        else:
            thinker = Eviction(begin + turn.user, turn.answer, self.thinker_length)
            talker = Eviction(0, 0, self.talker_length + spoken)
            turn.answer, turn.tokens = 0, []
        self.thinker_length -= thinker.leaving
        if not turn.user and not turn.answer:
            self.turns.remove(turn)
        return Evictions(thinker, talker)

    def _begin(self, turn: Turn) -> int:
        """The position in the thinker's cache where a turn begins."""
        earlier = self.turns[: next(i for i, other in enumerate(self.turns) if other is turn)]
        return self.prompt + sum(other.user + other.answer for other in earlier)

    def evict_oldest(self, spoken: int) -> Evictions:
        """Forgets the oldest turn; what leaves the two caches. In the talker's, `spoken` positions follow the turns."""
        turn = self.turns.pop(0)
        leaving = Evictions(
            Eviction(self.prompt, turn.user + turn.answer, self.thinker_length),
            Eviction(0, turn.user, self.talker_length + spoken),
        )
        self.thinker_length -= turn.user + turn.answer
        self.talker_length -= turn.user
        return leaving

    def user_end(self, turn: Turn) -> int:
        """The position in the thinker's cache after a turn's user part."""
        return self._begin(turn) + turn.user

    def transcript(self, decode: Callable[[list[int]], str]) -> Iterator[dict[str, Any]]:
        """The turns in words: the model does not write down what it hears, so speech is given by its time."""
        for turn in self.turns:
            if turn.is_out_of_band:
                continue
            if turn.role != "user":
                yield {"role": turn.role, "text": turn.typed}
                continue
            if turn.user:
                user: dict[str, Any] = {"role": "user"}
                if turn.sound_ms:
                    user |= {"audio_start_ms": turn.sound_ms[0], "audio_end_ms": turn.sound_ms[1]}
                if turn.typed:
                    user["text"] = turn.typed
                yield user
            if turn.answer:
                yield {"role": "assistant", "text": decode(turn.tokens), "interrupted": turn.interrupted}
