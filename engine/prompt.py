"""System prompts into the thinker's cache: batched over conversations, within a tick's budget, each text once."""

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
    """Tokens, padding counted in, that may still be prefilled in a tick. The first piece always fits."""

    def __init__(self, tokens: int):
        self._left = tokens
        self._is_untouched = True

    def take(self, tokens: int) -> bool:
        """Takes so many tokens, if they fit."""
        if tokens > self._left and not self._is_untouched:
            return False
        self._left -= tokens
        self._is_untouched = False
        return True


class PromptChunk(NamedTuple):
    """Some of a prompt's tokens."""

    slot: int
    start: int
    prompt: tuple[int, ...]  # all of it

    @property
    def end(self) -> int:
        """The position after the chunk's last token."""
        return min(self.start + PROMPT_CHUNK, len(self.prompt))


class PromptBatch:
    """R rows of prompts. The tensors keep their place in memory."""

    def __init__(self, rows: int, slots: SlotState, device: torch.device):
        self._padding_slot = slots.padding_slot
        self.slots = torch.full((rows,), slots.padding_slot, device=device)
        self.positions = CachePositions(self.slots, torch.zeros_like(self.slots))
        self.tokens = torch.zeros(rows, PROMPT_CHUNK, dtype=torch.int64, device=device)

    @property
    def variant(self) -> Hashable:
        """Rows."""
        return len(self.slots)

    def fill(self, chunks: Sequence[PromptChunk]) -> None:
        """Sets the rows, sorted by slot; the others are padding."""
        tokens = torch.zeros(self.tokens.shape, dtype=torch.int64)
        for row, chunk in enumerate(chunks):
            tokens[row, : chunk.end - chunk.start] = torch.tensor(chunk.prompt[chunk.start : chunk.end])
        self.tokens.copy_(tokens)
        starts = [(chunk.slot, chunk.start) for chunk in chunks]
        set_rows(starts, self._padding_slot, (self.slots, self.positions.starts))
        self.positions.set_host([chunk.slot for chunk in chunks], [chunk.start for chunk in chunks])

    def set_padding(self) -> None:
        """Makes every row padding."""
        self.slots.fill_(self._padding_slot)
        self.positions.starts.zero_()


class PromptPrefill:
    """The step `prompt`, and the keys and values of the prompts used last."""

    def __init__(self, thinker: Thinker, slots: SlotState, engine: EngineSettings, most: int, runner: GraphRunner):
        """Prompts of at most `most` tokens; those used last are kept."""
        self._thinker, self._slots, self._run = thinker, slots, runner
        self._most, self._kept = most, engine.prompts_kept
        self._kept_positions = engine.prompts_kept * engine.prompt_positions
        self._prefixes: OrderedDict[tuple[int, ...], Tensor] = OrderedDict()
        device = thinker.decoder.device
        self._batches = BatchPool(lambda rows: PromptBatch(rows, slots, device), slots.buckets)

    @property
    def kept_bytes(self) -> int:
        """Bytes of the keys and values that are kept."""
        return sum(prefix.nbytes for prefix in self._prefixes.values())

    def begin(self, slot: int, tokens: Sequence[int]) -> int:
        """Loads a prompt that is kept; returns how many of its tokens are in the cache. Raises `PromptTooLongError`."""
        if len(tokens) > self._most:
            expected = f"expected at most {self._most} tokens (engine.prompt_positions)"
            raise PromptTooLongError(f"system_prompt: {expected}, got {len(tokens)}")
        prefix = self._prefixes.get(tuple(tokens))
        if prefix is None:
            return 0
        self._prefixes.move_to_end(tuple(tokens))
        self._slots.thinker_cache.load(slot, prefix)
        return len(tokens)

    def schedule(self, conversations: Sequence[Conversation], budget: PrefillBudget) -> list[list[PromptChunk]]:
        """Rounds of chunks, one of each conversation a round, as far as the budget goes."""
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
        """Prefills what was scheduled, and keeps the prompts that are whole."""
        for chunks in rounds:
            batch = self._batches.of(len(chunks))
            batch.fill(chunks)
            self._run("prompt", self._step, batch)
            for chunk in chunks:
                if chunk.end == len(chunk.prompt):
                    self._keep(chunk)

    def capture(self, enabled: bool) -> None:
        """On CUDA: runs the step at every batch size, and captures it if `enabled`."""
        for rows in self._slots.buckets.all():
            self._run.capture("prompt", self._step, self._batches.with_rows(rows), enabled)

    def _step(self, batch: PromptBatch) -> None:
        """Positions past a prompt's end hold padding, and are written over by what follows."""
        self._thinker.decoder.forward(self._thinker.embed(batch.tokens), batch.positions)

    def _keep(self, chunk: PromptChunk) -> None:
        self._prefixes[chunk.prompt] = self._slots.thinker_cache.snapshot(chunk.slot, chunk.end)
        self._prefixes.move_to_end(chunk.prompt)
        while len(self._prefixes) > self._kept or sum(map(len, self._prefixes)) > self._kept_positions:
            self._prefixes.popitem(last=False)
