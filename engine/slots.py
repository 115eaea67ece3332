"""State of all conversations between ticks, by slot, with one owner and one reset.

Tensors have a row for each slot and one for padding. The thinker's cache has an additional scratch slot, in which the
model answers questions about a speaker without any effect on the conversation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from config.options import Options
from config.settings import Settings
from engine.buckets import BatchBuckets
from engine.cache_layout import TALKER_PREFIX, Evictions
from engine.kv_cache import KVCache
from engine.log_mel import SILENCE, LogMel
from engine.mel_buffer import MelBuffer
from engine.memory import PROMPT_CHUNK, cache_sizes
from engine.row_minimums import RowMinimums
from engine.sampler import SamplingState
from engine.vad import VadState


class SlotState:
    """State of `count` slots for a checkpoint and its settings.

    `reset` must erase every attribute of a slot; `tests/test_slots.py` finds all tensors with a slot dimension and
    checks them.
    """

    def __init__(self, checkpoint: Any, settings: Settings):
        model = checkpoint.model
        self.count = settings.engine.slots
        self.padding_slot = self.count
        self.scratch_slot = self.count + 1  # only in the thinker's cache, only in the dialect `turn`
        thinker, talker = cache_sizes(settings)
        ticks = settings.context_ticks
        has_scratch_slot = settings.engine.dialect == "turn"
        device: torch.device = model.device
        self.row_minimums = RowMinimums.measure(model)
        self.buckets = BatchBuckets(self.count, device, self.row_minimums.steps)  # decoding steps
        self.audio_buckets = BatchBuckets(self.count, device, self.row_minimums.products)  # encoder and its prefill
        self.prompt_buckets = BatchBuckets(self.count, device, self.row_minimums.rows_of(PROMPT_CHUNK))
        self.thinker_cache = KVCache(model.thinker.model, self.count + 1 + has_scratch_slot, thinker.positions(ticks))
        self.talker_cache = KVCache(model.talker.model, self.count + 1, talker.positions(ticks))

        weight = model.talker.model.norm.weight
        codes = model.talker.code_predictor.vocab_size + 1  # the codebook and the end of speech
        self.sampling = SamplingState(self.count, codes, weight.device)
        hidden_size, talker_size = (part.config.text_config.hidden_size for part in (model.thinker, model.talker))
        self.thinker_hidden = weight.new_zeros(self.count + 1, hidden_size)  # last hidden state
        self.talker_hidden = weight.new_zeros(self.count + 1, talker_size)  # last hidden state
        self.talker_prefix = weight.new_zeros(self.count + 1, TALKER_PREFIX, talker_size)  # prefix of an answer: voice
        self.text_condition = weight.new_zeros(self.count + 1, talker_size)  # text input of the next codec frame
        self.text_ended = torch.zeros(self.count + 1, dtype=torch.bool, device=weight.device)
        with torch.no_grad():
            begin = torch.tensor(model.config.talker_config.codec_bos_id, device=weight.device)
            self._first_frame = model.talker.model.codec_embedding(begin)
        self.last_frame = self._first_frame.repeat(self.count + 1, 1)  # sum of the last frame's embeddings

        self.log_mel_peak = torch.full((self.count + 1,), SILENCE)  # peak of the conversation until now, log10, on CPU
        self.vad = VadState(self.count)
        self._log_mel = LogMel(checkpoint.feature_extractor)
        self.mel = [MelBuffer(self._log_mel) for _ in range(self.count)]

    def reset(self, slot: int) -> None:
        """Erase the state of a slot's conversation."""
        self.thinker_cache.reset(slot)
        self.talker_cache.reset(slot)
        self.sampling.reset(slot)
        self.thinker_hidden[slot] = 0
        self.talker_hidden[slot] = 0
        self.talker_prefix[slot] = 0
        self.text_condition[slot] = 0
        self.text_ended[slot] = False
        self.last_frame[slot] = self._first_frame
        self.log_mel_peak[slot] = SILENCE
        self.vad.reset(slot)
        self.mel[slot] = MelBuffer(self._log_mel)

    def reset_scratch(self) -> None:
        """Erase the question about a speaker from the scratch slot."""
        self.thinker_cache.reset(self.scratch_slot)

    def non_finite(self, slots: Sequence[int]) -> list[int]:
        """Return the slots whose hidden states are not finite. Waits for the device."""
        index = torch.tensor(slots, device=self.thinker_hidden.device)
        finite = self.thinker_hidden[index].isfinite().all(dim=1) & self.talker_hidden[index].isfinite().all(dim=1)
        return [slot for slot, is_finite in zip(slots, finite.tolist(), strict=True) if not is_finite]

    def begin(self, slot: int, options: Options) -> None:
        """Set a slot that was reset to a conversation's options."""
        self.sampling.begin(slot, options)

    def evict(self, slot: int, evictions: Evictions) -> None:
        """Drop positions of a slot from both caches."""
        self.thinker_cache.evict(slot, *evictions.thinker)
        self.talker_cache.evict(slot, *evictions.talker)

    def begin_speech(self, slot: int) -> None:
        """Prepare a slot for the first frame of a speech: erase the conditions that an earlier speech left."""
        self.last_frame[slot] = self._first_frame
        self.text_ended[slot] = False
        self.sampling.begin_speech(slot)
