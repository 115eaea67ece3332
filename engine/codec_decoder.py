"""Decoding of codec frames, shared by all dialects. The text and the previous frame condition each frame.

A frame takes two steps: the talker predicts the first code, the code predictor the other 15.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from engine.attention import CachePositions
from engine.buckets import set_rows
from engine.code_predictor import CodePredictor
from engine.graph_runner import GraphRunner
from engine.sampler import sample
from engine.slots import SlotState
from engine.talker import Talker


class CodecRow(NamedTuple):
    """A conversation that emits codec frames in a tick."""

    slot: int
    start: int  # position of the next frame in the talker's cache
    rng_offset: int  # number of random numbers that the conversation has used
    samples: bool


class CodecBatch:
    """R rows that emit codec frames. The tensors keep their addresses, as a captured graph requires."""

    def __init__(self, rows: int, frames: int, slots: SlotState, talker: Talker):
        """Allocate a batch for `frames` codec frames per tick."""
        device = talker.decoder.device
        self._padding_slot = slots.padding_slot
        self.slots = torch.full((rows,), slots.padding_slot, device=device)
        self.rng_offset = torch.zeros_like(self.slots)
        self.positions = CachePositions(self.slots, torch.zeros_like(self.slots))  # in the talker's cache
        self.first = torch.zeros_like(self.slots)  # [R], the current frame's code of the first codebook
        self.codes = torch.zeros(rows, talker.codebooks, dtype=torch.int64, device=device)  # the current frame
        self.tick = torch.zeros(rows, frames, talker.codebooks, dtype=torch.int64, device=device)  # frames of the tick
        self.samples = False  # True if any row samples, False if all are greedy

    @property
    def variant(self) -> Hashable:
        """Number of rows, and whether any samples."""
        return len(self.slots), self.samples

    def fill(self, rows: Sequence[CodecRow]) -> None:
        """Set the rows, sorted by slot; the remaining ones become padding."""
        values = [(row.slot, row.start, row.rng_offset) for row in rows]
        set_rows(values, self._padding_slot, (self.slots, self.positions.starts, self.rng_offset))
        self.positions.set_host([row.slot for row in rows], [row.start for row in rows])
        self.samples = any(row.samples for row in rows)

    def set_padding(self) -> None:
        """Turn every row into padding."""
        self.slots.fill_(self._padding_slot)
        self.positions.starts.zero_()


class CodecDecoder:
    """The two steps of a codec frame."""

    def __init__(self, talker: Talker, predictor: CodePredictor, slots: SlotState, runner: GraphRunner, ends: bool):
        """Create the steps; `ends`: whether the talker may end its speech (`turn`) or never does (`sca`)."""
        self.talker = talker
        self._predictor = predictor
        self._slots = slots
        self._run = runner
        self._ends = ends

    def decode_frame(self, batch: CodecBatch, frame: int) -> None:
        """Decode the next frame of each row and store it as frame `frame` of the tick."""
        self._run("talker", self._predict_first, batch)
        self._run("code predictor", self._predict_rest, batch)
        batch.tick[:, frame] = batch.codes

    def capture(self, batch: CodecBatch, enabled: bool) -> None:
        """Run both steps on a batch, on CUDA, and capture them if `enabled`."""
        self._run.capture("talker", self._predict_first, batch, enabled)
        self._run.capture("code predictor", self._predict_rest, batch, enabled)

    def _predict_first(self, batch: CodecBatch) -> None:
        """Run the step `talker`: predict the code of the first codebook."""
        slots, sampling = self._slots, self._slots.sampling
        inputs = slots.last_frame[batch.slots] + slots.text_condition[batch.slots]
        hidden = self.talker.decoder.forward(inputs[:, None], batch.positions)[:, -1]
        slots.talker_hidden[batch.slots] = hidden
        logits = slots.row_minimums.apply(partial(self.talker.logits, ends=self._ends), hidden)
        logits = sampling.penalise(logits, batch.slots)
        if batch.samples:
            (uniforms,) = sampling.uniforms(batch.slots, batch.rng_offset, 1).unbind(1)
            batch.rng_offset += 1
            first = sample(logits, sampling.first_code(batch.slots), uniforms)
        else:
            first = logits.argmax(dim=-1)
        batch.first.copy_(first)
        sampling.note_first_codes(batch.slots, batch.first)

    def _predict_rest(self, batch: CodecBatch) -> None:
        """Run the step `code predictor`: complete the frame. Frames past the end of speech are computed and ignored."""
        first = batch.first.clamp(max=self.talker.codebook_size - 1) if self._ends else batch.first
        temperature = uniforms = None
        if batch.samples:
            others = self.talker.codebooks - 1
            temperature = self._slots.sampling.residual_temperature(batch.slots)
            uniforms = self._slots.sampling.uniforms(batch.slots, batch.rng_offset, others)
            batch.rng_offset += others
        hidden = self._slots.talker_hidden[batch.slots]
        codes, embedding = self._predictor(hidden, first, temperature, uniforms)
        batch.codes.copy_(codes)
        if self._ends:
            batch.codes[:, 0] = batch.first  # the unclamped code marks the end of speech
        self._slots.last_frame[batch.slots] = embedding


def no_frames(codebooks: int, frames: int) -> Tensor:
    """Return codes [16, frames] of silence: -1 everywhere."""
    return torch.full((codebooks, frames), -1)
