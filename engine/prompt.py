"""Prefill of system prompts: batched over conversations, within a tick's budget, with a cache of recent prompts."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from config.settings import EngineSettings
from engine.attention import CachePositions
from engine.buckets import BatchPool, set_rows
from engine.dialect import Conversation
from engine.errors import PromptTooLongError
from engine.graph_runner import GraphRunner
from engine.memory import PROMPT_CHUNK
from engine.slots import SlotState
from engine.thinker import Thinker


class PrefillBudget:
    """Number of tokens, including padding, that a tick may still prefill. The first request always fits."""

    def __init__(self, tokens: int):
        self._remaining = tokens
        self._is_untouched = True

    def take(self, tokens: int) -> bool:
        """Subtract `tokens` from the budget and return True, or return False if they exceed it."""
        if tokens > self._remaining and not self._is_untouched:
            return False
        self._remaining -= tokens
        self._is_untouched = False
        return True


class PromptChunk(NamedTuple):
    """Consecutive tokens of a prompt, at most `PROMPT_CHUNK`."""

    slot: int
    start: int  # position of the chunk's first token
    prompt: tuple[int, ...]  # the complete prompt

    @property
    def end(self) -> int:
        """Position after the chunk's last token."""
        return min(self.start + PROMPT_CHUNK, len(self.prompt))


class PromptBatch:
    """R rows of prompt chunks. The tensors keep their addresses, as a captured graph requires."""

    def __init__(self, rows: int, slots: SlotState, device: torch.device):
        self._padding_slot = slots.padding_slot
        self.slots = torch.full((rows,), slots.padding_slot, device=device)
        self.positions = CachePositions(self.slots, torch.zeros_like(self.slots))
        self.tokens = torch.zeros(rows, PROMPT_CHUNK, dtype=torch.int64, device=device)

    @property
    def variant(self) -> Hashable:
        """Number of rows."""
        return len(self.slots)

    def fill(self, chunks: Sequence[PromptChunk]) -> None:
        """Set the rows, sorted by slot; the remaining ones become padding."""
        tokens = torch.zeros(self.tokens.shape, dtype=torch.int64)
        for row, chunk in enumerate(chunks):
            tokens[row, : chunk.end - chunk.start] = torch.tensor(chunk.prompt[chunk.start : chunk.end])
        self.tokens.copy_(tokens)
        starts = [(chunk.slot, chunk.start) for chunk in chunks]
        set_rows(starts, self._padding_slot, (self.slots, self.positions.starts))
        self.positions.set_host([chunk.slot for chunk in chunks], [chunk.start for chunk in chunks])

    def set_padding(self) -> None:
        """Turn every row into padding."""
        self.slots.fill_(self._padding_slot)
        self.positions.starts.zero_()


class PromptPrefill:
    """The step `prompt`, and a cache of the keys and values of recently used prompts."""

    def __init__(
        self, thinker: Thinker, slots: SlotState, engine: EngineSettings, max_tokens: int, runner: GraphRunner
    ):
        """Accept prompts of at most `max_tokens`; cache the `engine.prompts_kept` latest."""
        self._thinker, self._slots, self._run = thinker, slots, runner
        self._max_tokens, self._max_prompts = max_tokens, engine.prompts_kept
        self._max_positions = engine.prompts_kept * engine.prompt_positions
        self._prefixes: OrderedDict[tuple[int, ...], Tensor] = OrderedDict()
        device = thinker.decoder.device
        self._batches = BatchPool(lambda rows: PromptBatch(rows, slots, device), slots.prompt_buckets)

    @property
    def cached_bytes(self) -> int:
        """Size of the cached keys and values in bytes."""
        return sum(prefix.nbytes for prefix in self._prefixes.values())

    def begin(self, slot: int, tokens: Sequence[int]) -> int:
        """Load the prompt's keys and values into a slot, if they are cached, and return the number of tokens loaded.

        Raises `PromptTooLongError`.
        """
        if len(tokens) > self._max_tokens:
            expected = f"expected at most {self._max_tokens} tokens (engine.prompt_positions)"
            raise PromptTooLongError(f"system_prompt: {expected}, got {len(tokens)}")
        prefix = self._prefixes.get(tuple(tokens))
        if prefix is None:
            return 0
        self._prefixes.move_to_end(tuple(tokens))
        self._slots.thinker_cache.load(slot, prefix)
        return len(tokens)

    def schedule(self, conversations: Sequence[Conversation], budget: PrefillBudget) -> list[list[PromptChunk]]:
        """Return rounds of chunks, one chunk per conversation in each round, within the budget."""
        rounds: list[list[PromptChunk]] = []
        waiting = [c for c in conversations if c.has_prompt_left]
        while waiting:
            chunks = []
            for conversation in list(waiting):
                if not budget.take(PROMPT_CHUNK):
                    break
                chunk = PromptChunk(conversation.slot, conversation.prompt_prefilled, tuple(conversation.prompt))
                conversation.prompt_chunk_prefilled(chunk.end - chunk.start)
                chunks.append(chunk)
            if not chunks:
                break
            rounds.append(chunks)
            waiting = [c for c in waiting if c.has_prompt_left]
        return rounds

    def run(self, rounds: Sequence[Sequence[PromptChunk]]) -> None:
        """Prefill the scheduled chunks, and cache the prompts that are complete."""
        for chunks in rounds:
            batch = self._batches.of(len(chunks))
            batch.fill(chunks)
            self._run("prompt", self._step, batch)
            for chunk in chunks:
                if chunk.end == len(chunk.prompt):
                    self._cache_prompt(chunk)

    def capture(self, enabled: bool) -> None:
        """Run the step at every batch size, on CUDA, and capture it if `enabled`."""
        for rows in self._slots.prompt_buckets.all():
            self._run.capture("prompt", self._step, self._batches.with_rows(rows), enabled)

    def _step(self, batch: PromptBatch) -> None:
        """Append the chunks. Padding after a prompt's end is overwritten by the positions that follow."""
        self._thinker.decoder.forward(self._thinker.embed(batch.tokens), batch.positions)

    def _cache_prompt(self, chunk: PromptChunk) -> None:
        self._prefixes[chunk.prompt] = self._slots.thinker_cache.snapshot(chunk.slot, chunk.end)
        self._prefixes.move_to_end(chunk.prompt)
        while len(self._prefixes) > self._max_prompts or sum(map(len, self._prefixes)) > self._max_positions:
            self._prefixes.popitem(last=False)
