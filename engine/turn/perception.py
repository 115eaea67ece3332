"""What the model makes of a speaker: it is asked on a branch of the conversation, and may answer with labels alone.

The branch is a slot of its own, into which the thinker's keys and values up to the end of the user's turn are copied.
A label's probability is the product of its tokens', each among the tokens with which some label could go on there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.attention import Cursor
from engine.errors import OptionError
from engine.memory import QUESTION_SPARE
from engine.thinker import Thinker
from engine.turn.chat import Chat
from engine.turn.conversation import TurnConversation
from engine.turn.history import Turn

QUESTIONS = {
    "emotion": "Which emotion is in the voice of the last message? Answer with one of these words alone: {labels}.",
    "language": "Which language is the last message spoken in? Answer with one of these words alone: {labels}.",
}
Labels = Sequence[str]
A_TICK = 2  # questions in one tick
PATIENCE = 10  # ticks that a question waits for one in which no answer begins


class Perception:
    """Asks a question or two a tick, of one conversation after another."""

    def __init__(self, thinker: Thinker, chat: Chat, branch: int):
        """`branch`: a slot of the thinker's that no conversation has."""
        self._thinker, self._chat, self._branch = thinker, chat, branch
        self._waited = 0
        self._last = -1  # the slot that was asked about last

    def ask(self, conversations: Sequence[TurnConversation], busy: bool) -> None:
        """Asks what some of the conversations wait for, unless the device has answers to begin."""
        for _ in range(A_TICK):
            waiting = [conversation for conversation in conversations if conversation.asks]
            if not waiting:
                return
            self._waited += 1
            if busy and self._waited < PATIENCE:
                return
            self._waited = 0
            later = [conversation for conversation in waiting if conversation.slot > self._last]
            self._ask((later or waiting)[0])

    def rehearse(self) -> None:
        """Runs what a question runs, so that nothing is compiled in the middle of a tick."""
        for length in (QUESTION_SPARE, 1):
            self._feed([0] * length, 0)

    def _ask(self, conversation: TurnConversation) -> None:
        self._last = conversation.slot
        turn, name = conversation.asks.pop(0)
        labels = conversation.options.turn.asked(name)
        probabilities = self.perceive(conversation, turn, name, labels)
        label = max(probabilities, key=lambda label: probabilities[label])
        conversation.tell_perceived(turn, name, label, probabilities[label])

    def perceive(self, conversation: TurnConversation, turn: Turn, name: str, labels: Labels) -> dict[str, float]:
        """The probability of each label; they sum to 1."""
        start = conversation.history.user_end(turn)
        self._thinker.decoder.copy(conversation.slot, self._branch, start)
        tokens = self._question(name, labels)
        spellings = {label: self._chat.spell(label) for label in labels}
        return self._spread(spellings, self._feed(tokens, start), start + len(tokens))

    def expect_possible(self, name: str, labels: Labels) -> None:
        """Raises `OptionError` for a question that is longer than its place."""
        length = len(self._question(name, labels)) + max(len(self._chat.spell(label)) for label in labels)
        if length > QUESTION_SPARE:
            raise OptionError(
                f"{name} is a question of {length} tokens with its {len(labels)} labels, expected at most "
                f"{QUESTION_SPARE}: ask for fewer"
            )

    def _question(self, name: str, labels: Labels) -> list[int]:
        question = QUESTIONS[name].format(labels=", ".join(labels))
        return [*self._chat.typed(question), *self._chat.close, *self._chat.answer_opening]

    def _spread(self, spellings: dict[str, list[int]], hidden: Tensor, position: int) -> dict[str, float]:
        """The probability of each label, given what is left of its spelling behind `position`."""
        if len(spellings) == 1:
            return dict.fromkeys(spellings, 1.0)
        firsts = list(dict.fromkeys(spelling[0] for spelling in spellings.values()))
        shares = self._thinker.logits(hidden)[0, firsts].softmax(dim=0).tolist()
        found: dict[str, float] = {}
        for first, share in zip(firsts, shares, strict=True):
            rest = {label: spelling[1:] for label, spelling in spellings.items() if spelling[0] == first}
            after = self._feed([first], position) if len(rest) > 1 else hidden
            found |= {label: share * within for label, within in self._spread(rest, after, position + 1).items()}
        return found

    def _feed(self, tokens: list[int], position: int) -> Tensor:
        """The last hidden state [1, H] after tokens at a position of the branch; many are padded to one length."""
        device = self._thinker.decoder.device
        cursor = Cursor(torch.tensor([self._branch], device=device), torch.tensor([position], device=device))
        cursor.place([self._branch], [position])
        padded = tokens if len(tokens) == 1 else tokens + [0] * (QUESTION_SPARE - len(tokens))
        embeddings = self._thinker.embed(torch.tensor([padded], device=device))
        return self._thinker.decoder.forward(embeddings, cursor)[:, len(tokens) - 1]
