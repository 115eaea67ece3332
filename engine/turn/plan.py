"""A tick of the dialect `turn` as it is planned, before anything of it is computed."""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.cache_layout import Evictions
from engine.codec_decoder import CodecBatch, CodecRow
from engine.errors import ConversationError
from engine.prompt import PromptChunk
from engine.sampler import candidates
from engine.text_decoder import TextBatch, TextRow
from engine.turn.actions import Decode
from engine.turn.conversation import TurnConversation
from engine.turn.prefill import PrefillRow


@dataclass
class TurnPlan:
    """Work of a tick."""

    conversations: list[TurnConversation]  # conversations in the tick, sorted by slot
    failures: dict[int, ConversationError] = field(default_factory=dict)
    evictions: dict[int, list[Evictions]] = field(default_factory=dict)  # evictions before the prefill, by slot
    prompts: list[list[PromptChunk]] = field(default_factory=list)
    prefills: list[list[PrefillRow]] = field(default_factory=list)  # rounds, one chunk of a conversation a round
    decodes: dict[int, Decode] = field(default_factory=dict)  # one tick of an answer, by slot
    text: TextBatch | None = None
    codec: CodecBatch | None = None

    def fail(self, conversation: TurnConversation, error: Exception) -> None:
        """Remove a conversation from the tick: it failed, and the others continue."""
        failure = ConversationError(f"the conversation failed and is closed: {error!r}")
        self.failures[conversation.slot] = failure
        self.conversations = [other for other in self.conversations if other is not conversation]
        self.decodes.pop(conversation.slot, None)

    def decoding(self, what: str) -> list[int]:
        """Return the slots that decode `text` or `frames`."""
        return [slot for slot, decode in self.decodes.items() if getattr(decode, f"emits_{what}")]


def text_row(conversation: TurnConversation, decode: Decode) -> TextRow:
    """Return the row of a conversation whose answer emits text."""
    sampling = conversation.options.sampling
    among = candidates(sampling.text_temperature > 0, sampling.text_top_k)
    return TextRow(conversation.slot, decode.thinker_start, decode.text_rng_offset, among, decode.tokens_left)


def codec_row(conversation: TurnConversation, decode: Decode) -> CodecRow:
    """Return the row of a conversation whose answer emits frames."""
    samples = conversation.options.sampling.temperature > 0
    return CodecRow(conversation.slot, decode.talker_start, decode.codec_rng_offset, samples)
