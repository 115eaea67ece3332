"""Labels of a speaker, by the model: a question in the scratch slot, whose answer is one of the labels.

The thinker's keys and values up to the end of the user's turn are copied into the scratch slot. A label's probability
is the product of the probabilities of its tokens, each among the tokens with which a label can continue.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from engine.attention import CachePositions
from engine.errors import OptionError
from engine.memory import QUESTION_POSITIONS
from engine.slots import SlotState
from engine.thinker import Thinker
from engine.turn.actions import Question
from engine.turn.chat_template import ChatTemplate
from engine.turn.conversation import TurnConversation

QUESTIONS = {
    "emotion": "Which emotion is in the voice of the last message? Answer with one of these words alone: {labels}.",
    "language": "Which language is the last message spoken in? Answer with one of these words alone: {labels}.",
}
QUESTIONS_PER_TICK = 2
MAX_WAITED_TICKS = 10  # maximum ticks that a question waits for one in which no answer begins


class SpeakerClassifier:
    """Computes up to `QUESTIONS_PER_TICK` questions a tick, of one conversation after another."""

    def __init__(self, thinker: Thinker, chat: ChatTemplate, slots: SlotState):
        self._thinker, self._chat, self._slots = thinker, chat, slots
        self._waited_ticks = 0
        self._last_slot = -1  # slot of the latest question

    def next_conversations(self, conversations: Sequence[TurnConversation], busy: bool) -> Iterator[TurnConversation]:
        """Yield conversations whose next question is computed in this tick; none while answers begin (`busy`)."""
        for _ in range(QUESTIONS_PER_TICK):
            waiting = [conversation for conversation in conversations if conversation.has_question]
            if not waiting:
                return
            self._waited_ticks += 1
            if busy and self._waited_ticks < MAX_WAITED_TICKS:
                return
            self._waited_ticks = 0
            later = [conversation for conversation in waiting if conversation.slot > self._last_slot]
            chosen = (later or waiting)[0]
            self._last_slot = chosen.slot
            yield chosen

    def warm_up(self) -> None:
        """Run the computations of a question, so that nothing is compiled in the middle of a tick."""
        for length in (QUESTION_POSITIONS, 1):
            self._append([0] * length, 0)
        self._slots.reset_scratch()

    def probabilities(
        self, conversation: TurnConversation, question: Question, labels: Sequence[str]
    ) -> dict[str, float]:
        """Return the probability of each label; their sum is 1."""
        start = conversation.history.end_of(question.entry)
        self._slots.thinker_cache.copy(conversation.slot, self._slots.scratch_slot, start)
        tokens = self._tokens(question.name, labels)
        spellings = {label: self._chat.spell(label) for label in labels}
        found = self._spread(spellings, self._append(tokens, start), start + len(tokens))
        self._slots.reset_scratch()
        return found

    def expect_possible(self, name: str, labels: Sequence[str]) -> None:
        """Raise `OptionError` for a question that has too many tokens."""
        length = len(self._tokens(name, labels)) + max(len(self._chat.spell(label)) for label in labels)
        if length > QUESTION_POSITIONS:
            raise OptionError(
                f"{name}: expected labels of at most {QUESTION_POSITIONS} tokens with their question, got {length} "
                f"tokens for {len(labels)} labels: use fewer labels"
            )

    def answer(self, conversation: TurnConversation) -> None:
        """Compute the next question about a conversation, and emit its event."""
        question = conversation.take_question()
        labels = conversation.options.turn.selected_labels(question.name)
        probabilities = self.probabilities(conversation, question, labels)
        label = max(probabilities, key=lambda label: probabilities[label])
        conversation.scratch.report(question, label, probabilities[label])

    def _tokens(self, name: str, labels: Sequence[str]) -> list[int]:
        question = QUESTIONS[name].format(labels=", ".join(labels))
        return [*self._chat.typed(question), *self._chat.close, *self._chat.answer_opening]

    def _spread(self, spellings: dict[str, list[int]], hidden: Tensor, position: int) -> dict[str, float]:
        """Return the probability of each label, given the rest of its spelling from `position` on."""
        if len(spellings) == 1:
            return dict.fromkeys(spellings, 1.0)
        firsts = list(dict.fromkeys(spelling[0] for spelling in spellings.values()))
        shares = self._thinker.logits(hidden)[0, firsts].softmax(dim=0).tolist()
        found: dict[str, float] = {}
        for first, share in zip(firsts, shares, strict=True):
            rest = {label: spelling[1:] for label, spelling in spellings.items() if spelling[0] == first}
            after = self._append([first], position) if len(rest) > 1 else hidden
            found |= {label: share * within for label, within in self._spread(rest, after, position + 1).items()}
        return found

    def _append(self, tokens: list[int], position: int) -> Tensor:
        """Return the last hidden state [1, H] after tokens at a position of the scratch slot."""
        decoder = self._thinker.decoder
        positions = CachePositions.of([self._slots.scratch_slot], [position], decoder.device)
        padded = tokens if len(tokens) == 1 else tokens + [0] * (QUESTION_POSITIONS - len(tokens))
        embeddings = self._thinker.embed(torch.tensor([padded], device=decoder.device))
        return decoder.forward(embeddings, positions)[:, len(tokens) - 1]
