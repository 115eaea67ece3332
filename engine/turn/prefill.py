"""Chunks of users' turns into the caches, several conversations at once.

A chunk is tokens, and the clip that belongs to the audio tokens among them. The thinker receives the whole chunk. The
talker receives the user's part: a projection of the thinker's embeddings at text tokens, of its middle layer at audio
tokens; and, before an answer, the answer's opening and the talker's prefix, which names the voice. As `generate()` of
`Qwen3OmniMoeForConditionalGeneration` (transformers 5.20.2) prepares them.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from engine.attention import CachePositions
from engine.buckets import BatchBuckets, set_rows
from engine.cache_layout import TALKER_PREFIX
from engine.graph_runner import GraphRunner
from engine.slots import SlotState
from engine.talker import Talker
from engine.thinker import Thinker
from engine.turn.actions import Prefill, PrefillChunk

CUDA_BLOCKS = (2, 4, 8)  # sizes that a clip is padded to, in encoder blocks of 100 frames; on a CPU, any number
MAX_ROWS = 8  # maximum rows of a batch on CUDA: turns seldom end together, and each size is a separate graph
TOKENS_STEP = 16  # tokens are padded to a multiple of this number
TOKENS_NEXT_TO_CLIP = 12  # maximum tokens of a chunk that are not audio


class Size(NamedTuple):
    """Padded size of the rows of a batch."""

    blocks: int
    tokens: int


class PrefillRow(NamedTuple):
    """A chunk with its positions, and its clip as the input of the encoder."""

    slot: int
    prefill: Prefill
    clip: Tensor | None  # [128, frames]


class PrefillBatch:
    """R rows, padded to T tokens and K blocks. The tensors keep their address in memory."""

    def __init__(self, size: Size, rows: int, slots: SlotState, thinker: Thinker):
        device, encoder = thinker.decoder.device, thinker.audio_encoder
        self.size = size
        self._encoder = encoder
        self._padding_slot = slots.padding_slot
        self.slots = torch.full((rows,), slots.padding_slot, device=device)
        self.thinker = CachePositions(self.slots, torch.zeros_like(self.slots))
        self.talker = CachePositions(self.slots, torch.zeros_like(self.slots))
        self.log_mel = torch.zeros(rows, 128, size.blocks * encoder.block, device=device)
        self.audio_tokens = torch.zeros_like(self.slots)  # number of audio tokens of each clip
        self.tokens = torch.zeros(rows, size.tokens, dtype=torch.int64, device=device)
        self.last = torch.zeros_like(self.slots)  # the index of the last token that is not padding
        # Input of the talker: indices among the T tokens and, after them, the talker's prefix, [R, T + 5].
        self.talker_inputs = torch.zeros(rows, size.tokens + TALKER_PREFIX, dtype=torch.int64, device=device)

    @property
    def variant(self) -> Hashable:
        """Number of rows, and their size."""
        return len(self.slots), self.size

    def fill(self, rows: Sequence[PrefillRow]) -> None:
        """Set the rows, sorted by slot; the others are padding."""
        tokens = torch.zeros(self.tokens.shape, dtype=torch.int64)
        inputs = torch.zeros(self.talker_inputs.shape, dtype=torch.int64)
        clips = torch.zeros(self.log_mel.shape)
        values = []
        for row, (slot, prefill, clip) in enumerate(rows):
            chunk = prefill.chunk
            all_tokens = chunk.tokens
            tokens[row, : len(all_tokens)] = torch.tensor(all_tokens)
            prefix = range(self.size.tokens, self.size.tokens + TALKER_PREFIX) if chunk.opening else ()
            to_talker = [*range(chunk.talker_first, len(all_tokens)), *prefix]
            inputs[row, : len(to_talker)] = torch.tensor(to_talker)
            audio_tokens = 0
            if clip is not None:
                clips[row, :, : clip.shape[1]] = clip
                audio_tokens = self._encoder.tokens(clip.shape[1])
            values.append((slot, prefill.thinker_start, prefill.talker_start, audio_tokens, len(all_tokens) - 1))
        tensors = (self.slots, self.thinker.starts, self.talker.starts, self.audio_tokens, self.last)
        set_rows(values, self._padding_slot, tensors)
        for tensor, filled in ((self.tokens, tokens), (self.talker_inputs, inputs), (self.log_mel, clips)):
            tensor.copy_(filled)
        slots = [row.slot for row in rows]
        self.thinker.set_host(slots, [row.prefill.thinker_start for row in rows])
        self.talker.set_host(slots, [row.prefill.talker_start for row in rows])

    def set_padding(self) -> None:
        """Make every row padding."""
        self.slots.fill_(self._padding_slot)
        self.thinker.starts.zero_()
        self.talker.starts.zero_()


class TurnPrefill:
    """The step `prefill` and its batches."""

    def __init__(
        self,
        thinker: Thinker,
        talker: Talker,
        slots: SlotState,
        audio_token: int,
        accept_hidden_layer: int,
        runner: GraphRunner,
    ):
        """Create the step; `accept_hidden_layer`: thinker's layer whose output the talker receives at audio tokens."""
        self._thinker, self._talker, self._slots, self._run = thinker, talker, slots, runner
        self._audio_token, self._layer = audio_token, accept_hidden_layer
        self._device = thinker.decoder.device
        encoder = thinker.audio_encoder
        max_blocks = encoder.window // encoder.block
        choice = CUDA_BLOCKS if self._device.type == "cuda" else range(1, max_blocks)
        blocks = [*(count for count in choice if count < max_blocks), max_blocks]
        self.sizes = [Size(count, _padded_tokens(count * encoder.block_tokens)) for count in blocks]
        self._buckets = BatchBuckets(min(MAX_ROWS, slots.count), self._device)
        self._batches: dict[tuple[Size, int], PrefillBatch] = {}

    def size(self, chunk: PrefillChunk) -> Size:
        """Return the smallest size that a chunk fits into, which does not depend on other chunks."""
        frames, tokens = chunk.clip.frames if chunk.clip else 0, len(chunk.tokens)
        block = self._thinker.audio_encoder.block
        return next(size for size in self.sizes if frames <= size.blocks * block and tokens <= size.tokens)

    def run(self, rows: Sequence[PrefillRow]) -> None:
        """Prefill one chunk each of several conversations, sorted by slot."""
        by_size: dict[Size, list[PrefillRow]] = {}
        for row in rows:
            by_size.setdefault(self.size(row.prefill.chunk), []).append(row)
        for size, alike in by_size.items():
            max_rows = MAX_ROWS if self._device.type == "cuda" else len(alike)
            for first in range(0, len(alike), max_rows):
                together = alike[first : first + max_rows]
                batch = self.batch(size, self._buckets.of(len(together)))
                batch.fill(together)
                self._run("prefill", self.step, batch)

    def capture(self, enabled: bool) -> None:
        """Run the step at every size on CUDA, and capture it as a graph if `enabled`."""
        for rows in self._buckets.all():
            for size in self.sizes:
                self._run.capture("prefill", self.step, self.batch(size, rows), enabled)

    def batch(self, size: Size, rows: int) -> PrefillBatch:
        """Return the batch of a size."""
        if (size, rows) not in self._batches:
            self._batches[size, rows] = PrefillBatch(size, rows, self._slots, self._thinker)
        return self._batches[size, rows]

    def step(self, batch: PrefillBatch) -> None:
        """Compute a batch. Positions past a row's last token hold padding, which later chunks overwrite."""
        thinker, talker, slots = self._thinker, self._talker, self._slots
        audio = thinker.audio_encoder(batch.log_mel, batch.audio_tokens.clamp(min=1))  # [R, 13 K, H]
        is_audio = batch.tokens == self._audio_token
        index = (is_audio.cumsum(1) - 1).clamp(min=0, max=audio.shape[1] - 1)
        audio = audio.gather(1, index[..., None].expand(-1, -1, audio.shape[2]))
        text = thinker.embed(batch.tokens)
        embeddings = torch.where(is_audio[..., None], audio.to(text.dtype), text)
        last, middle = thinker.decoder.forward_with_layer(embeddings, batch.thinker, self._layer)
        rows = torch.arange(len(batch.slots), device=self._device)
        slots.thinker_hidden[batch.slots] = last[rows, batch.last]

        inputs = torch.where(is_audio[..., None], talker.project_audio(middle), talker.project_text(embeddings))
        inputs = torch.cat([inputs, slots.talker_prefix[batch.slots]], dim=1)
        inputs = inputs.gather(1, batch.talker_inputs[..., None].expand(-1, -1, inputs.shape[2]))
        talker.decoder.forward(inputs, batch.talker)


def _padded_tokens(audio_tokens: int) -> int:
    """Return the padded number of tokens for `audio_tokens` of audio."""
    return -(-(audio_tokens + TOKENS_NEXT_TO_CLIP) // TOKENS_STEP) * TOKENS_STEP
