"""What the model says of a speaker: it is asked in the scratch slot, and may answer with labels alone.

The thinker's keys and values up to the end of the user's turn are copied into the scratch slot. A label's probability
is the product of its tokens', each among the tokens with which some label could go on there.
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
MAX_WAITED_TICKS = 10  # of a question, for a tick in which no answer begins


class SpeakerClassifier:
    """Asks a question or two a tick, of one conversation after another."""

    def __init__(self, thinker: Thinker, chat: ChatTemplate, slots: SlotState):
        self._thinker, self._chat, self._slots = thinker, chat, slots
        self._waited_ticks = 0
        self._last_slot = -1  # that was asked about

    def due(self, conversations: Sequence[TurnConversation], busy: bool) -> Iterator[TurnConversation]:
        """Some of those that wait for an answer, to be asked about; none while the device has answers to begin."""
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
        """Runs what a question runs, so that nothing is compiled in the middle of a tick."""
        for length in (QUESTION_POSITIONS, 1):
            self._append([0] * length, 0)
        self._slots.reset_scratch()

    def probabilities(
        self, conversation: TurnConversation, question: Question, labels: Sequence[str]
    ) -> dict[str, float]:
        """The probability of each label; they sum to 1."""
        start = conversation.history.user_end(question.turn)
        self._slots.thinker_cache.copy(conversation.slot, self._slots.scratch_slot, start)
        tokens = self._tokens(question.name, labels)
        spellings = {label: self._chat.spell(label) for label in labels}
        found = self._spread(spellings, self._append(tokens, start), start + len(tokens))
        self._slots.reset_scratch()
        return found

    def expect_possible(self, name: str, labels: Sequence[str]) -> None:
        """Raises `OptionError` for a question of more tokens than it may have."""
        length = len(self._tokens(name, labels)) + max(len(self._chat.spell(label)) for label in labels)
        if length > QUESTION_POSITIONS:
            raise OptionError(
                f"{name} is a question of {length} tokens with its {len(labels)} labels, expected at most "
                f"{QUESTION_POSITIONS}: ask for fewer"
            )

    def ask(self, conversation: TurnConversation) -> None:
        """Asks the next question about a conversation, and tells it."""
        question = conversation.take_question()
        labels = conversation.options.turn.selected_labels(question.name)
        probabilities = self.probabilities(conversation, question, labels)
        label = max(probabilities, key=lambda label: probabilities[label])
        conversation.tell_speaker(question, label, probabilities[label])

    def _tokens(self, name: str, labels: Sequence[str]) -> list[int]:
        question = QUESTIONS[name].format(labels=", ".join(labels))
        return [*self._chat.typed(question), *self._chat.close, *self._chat.answer_opening]

    def _spread(self, spellings: dict[str, list[int]], hidden: Tensor, position: int) -> dict[str, float]:
        """The probability of each label, given what is left of its spelling from `position` on."""
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
        """The last hidden state [1, H] after tokens at a position of the scratch slot; padded to one of two lengths."""
        decoder = self._thinker.decoder
        positions = CachePositions.of([self._slots.scratch_slot], [position], decoder.device)
        padded = tokens if len(tokens) == 1 else tokens + [0] * (QUESTION_POSITIONS - len(tokens))
        embeddings = self._thinker.embed(torch.tensor([padded], device=decoder.device))
        return decoder.forward(embeddings, positions)[:, len(tokens) - 1]
