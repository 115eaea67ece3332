"""The dialect `sca`: time-aligned, for a checkpoint fine-tuned for full duplex.

In each tick the log-mel frames become audio tokens in the thinker's cache. Then the thinker emits text tokens. The last
hidden state of each text token, through the talker's text projection, conditions an equal share of the tick's codec
frames: 4 audio tokens, 2 text tokens and 4 codec frames in 320 ms. The talker's recurrent input is the sum of the 16
embeddings of the previous frame.

The thinker's cache starts with the system prompt's turn, if there is one, and `<|audio_start|>`. The talker's cache
starts with transformers' prefix of an answer, which selects the voice. A conversation ignores audio and emits silence
until its prompt is prefilled: usually within the first tick, later if many conversations start at once.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from config.options import Options
from config.settings import Settings
from contract.controls import Controls
from engine.attention import CachePositions
from engine.buckets import BatchPool, set_rows
from engine.checkpoint import Checkpoint
from engine.code_predictor import CodePredictor
from engine.codec_decoder import CodecBatch, CodecDecoder, CodecRow, no_frames
from engine.detokenizer import Detokenizer
from engine.dialect import Row
from engine.errors import ContextFullError, ConversationError
from engine.graph_runner import GraphRunner
from engine.log_mel import normalise
from engine.prompt import PrefillBudget, PromptChunk, PromptPrefill
from engine.sampler import ALL, FEW, GREEDY, candidates
from engine.sca.conversation import ScaConfig, ScaConversation
from engine.slots import SlotState
from engine.talker import Talker
from engine.talker_prefix import talker_prefix
from engine.text_decoder import TextBatch, TextRow, next_token
from engine.thinker import Thinker
from engine.tick import TickOutput, TickResult


class AudioBatch:
    """Audio of R rows for one tick. The tensors keep their addresses, as a captured graph requires."""

    def __init__(self, rows: int, audio_tokens: int, mel_frames: int, slots: SlotState, thinker: Thinker):
        device, dtype = thinker.decoder.device, thinker.decoder.dtype
        self._padding_slot = slots.padding_slot
        self.slots = torch.full((rows,), slots.padding_slot, device=device)
        self.positions = CachePositions(self.slots, torch.zeros_like(self.slots))  # in the thinker's cache
        self.log_mel = torch.zeros(rows, 128, mel_frames, dtype=dtype, device=device)
        self.embeddings = torch.zeros(rows, audio_tokens, thinker.hidden_size, dtype=dtype, device=device)

    @property
    def variant(self) -> Hashable:
        """Number of rows."""
        return len(self.slots)

    def fill(self, slots: Sequence[int], starts: Sequence[int], log_mel: Tensor) -> None:
        """Set the rows, sorted by slot, and their log-mel [B, 128, T]; the remaining ones become padding of zeros."""
        values = list(zip(slots, starts, strict=True))
        set_rows(values, self._padding_slot, (self.slots, self.positions.starts))
        self.positions.set_host(list(slots), list(starts))
        self.log_mel[: len(log_mel)].copy_(log_mel)
        self.log_mel[len(log_mel) :] = 0

    def set_padding(self) -> None:
        """Turn every row into padding."""
        self.slots.fill_(self._padding_slot)
        self.positions.starts.zero_()


@dataclass
class ScaPlan:
    """Plan of one tick."""

    rows: list[Row] = field(default_factory=list)  # conversations to decode, sorted by slot
    waiting: list[ScaConversation] = field(default_factory=list)  # conversations whose prompt is not prefilled yet
    failures: dict[int, ConversationError] = field(default_factory=dict)
    prompts: list[list[PromptChunk]] = field(default_factory=list)
    text: TextBatch | None = None
    codec: CodecBatch | None = None


class ScaDialect:
    """The four stages of a tick in the dialect `sca`."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        settings: Settings,
        slots: SlotState,
        predictor: CodePredictor,
        runner: GraphRunner,
    ):
        model, engine = checkpoint.model, settings.engine
        config = model.config
        self._tokenizer = checkpoint.tokenizer
        self._audio_start: int = config.thinker_config.audio_start_token_id
        self._prefill_tokens = engine.prefill_tokens
        self._text_tokens, self._frames = engine.text_tokens_per_tick, settings.audio.codec_frames
        self._slots = slots
        self.thinker = Thinker(model.thinker, slots.thinker_cache)
        self.talker = Talker(model.talker, slots.talker_cache)
        self._codec = CodecDecoder(self.talker, predictor, slots, runner, ends=False)
        self._device = self.thinker.decoder.device
        self._run = runner
        self._config = ScaConfig.of(settings, self.talker.codebooks)
        self._detokenizer = partial(Detokenizer, checkpoint.tokenizer)
        self._prompts = PromptPrefill(self.thinker, slots, engine, engine.prompt_positions, runner)
        self._voices = {
            voice: self._prefill_prefix(talker_prefix(config, self.thinker, self.talker, voice))
            for voice in config.talker_config.speaker_id
        }
        mel_frames = settings.audio.mel_frames
        self._text_batches = BatchPool(
            lambda rows: TextBatch(rows, self._text_tokens, slots, self.thinker),
            slots.buckets,
        )
        self._audio_batches = BatchPool(
            lambda rows: AudioBatch(rows, self._frames, mel_frames, slots, self.thinker),
            slots.audio_buckets,
        )
        self._codec_batches = BatchPool(
            lambda rows: CodecBatch(rows, self._frames, slots, self.talker),
            slots.buckets,
        )
        self.warm_up_controls: Sequence[Controls] = (Controls(), Controls())

    def begin(self, slot: int, options: Options) -> ScaConversation:
        """Create a conversation in a slot that was reset. Raises `OptionError`."""
        prompt = [*self._prompt_tokens(options.system_prompt), self._audio_start]
        conversation = ScaConversation(slot, options, prompt, config=self._config, detokenizer=self._detokenizer())
        conversation.prompt_chunk_prefilled(self._prompts.begin(slot, prompt))
        self._slots.talker_cache.load(slot, self._voices[options.voice])
        self._slots.begin(slot, options)
        self._slots.begin_speech(slot)
        return conversation

    def schedule(self, rows: Sequence[Row]) -> ScaPlan:
        """Return which conversations are decoded in this tick, and which chunks of prompts are prefilled."""
        plan = ScaPlan()
        conversations = [row.conversation for row in rows]
        plan.prompts = self._prompts.schedule(conversations, PrefillBudget(self._prefill_tokens))
        for row in rows:
            conversation: ScaConversation = row.conversation
            conversation.age += 1
            if conversation.has_prompt_left:
                plan.waiting.append(conversation)
                continue
            try:
                evictions = conversation.make_room()
            except ContextFullError as error:
                plan.failures[conversation.slot] = error
                continue
            if evictions:
                with self._run.timer("evict"):
                    self._slots.evict(conversation.slot, evictions)
            plan.rows.append(row)
        return plan

    def prefill(self, plan: ScaPlan) -> None:
        """Prefill prompts, then encode the tick's audio and append it to the thinker's cache."""
        self._prompts.run(plan.prompts)
        if not plan.rows:
            return
        text_rows, codec_rows, audio_starts = [], [], []
        for row in plan.rows:
            conversation: ScaConversation = row.conversation
            sampling, positions = conversation.options.sampling, conversation.positions
            samples = sampling.text_temperature > 0 or sampling.temperature > 0
            count = candidates(samples, sampling.text_top_k if sampling.text_temperature > 0 else FEW)
            audio_starts.append(positions.thinker)
            text_rows.append(TextRow(conversation.slot, positions.thinker + self._frames, positions.rng_offset, count))
            codec_rows.append(CodecRow(conversation.slot, positions.talker, positions.rng_offset, samples))
        plan.text, plan.codec = self._text_batches.of(len(plan.rows)), self._codec_batches.of(len(plan.rows))
        plan.text.fill(text_rows)
        plan.codec.fill(codec_rows)
        audio = self._audio_batches.of(len(plan.rows))
        audio.fill([row.slot for row in text_rows], audio_starts, self._log_mel(plan.rows))
        self._run("encoder", self._encode, audio)
        self._run("prefill", self._append_audio, audio)

    def decode(self, plan: ScaPlan) -> None:
        """Decode text tokens, and after each one its share of the tick's codec frames."""
        text, codec = plan.text, plan.codec
        if text is None or codec is None:
            return
        frame = 0
        for token in range(self._text_tokens):
            text.rng_offset.copy_(codec.rng_offset)  # tokens and frames use one sequence of random numbers in turn
            self._run("text", self._text_step, text)
            codec.rng_offset.copy_(text.rng_offset)
            text.tick[:, token] = text.token
            for _ in range(self._frames // self._text_tokens):
                self._codec.decode_frame(codec, frame)
                frame += 1

    def postprocess(self, plan: ScaPlan) -> dict[int, TickResult]:
        """Return results by slot. Device-to-host copies: the only synchronisation in a tick."""
        results: dict[int, TickResult] = dict(plan.failures)
        for conversation in plan.waiting:
            results[conversation.slot] = TickOutput(no_frames(self.talker.codebooks, self._frames), [], "")
        if plan.text and plan.codec:
            tokens, codes = plan.text.tick.tolist(), plan.codec.tick.to("cpu", copy=True).transpose(1, 2)
            for row, emitted, frames in zip(plan.rows, tokens, codes, strict=False):  # further rows are padding
                is_first = row.conversation.decoded_ticks == 0
                text, events = row.conversation.decoded(emitted)
                results[row.conversation.slot] = TickOutput(frames, emitted, text, events, begins=is_first)
        return results

    def capture(self, enabled: bool) -> None:
        """Run every step at every batch size, on CUDA, and capture it if `enabled`."""
        self._prompts.capture(enabled)
        for rows in self._slots.audio_buckets.all():
            audio = self._audio_batches.with_rows(rows)
            self._run.capture("encoder", self._encode, audio, enabled)
            self._run.capture("prefill", self._append_audio, audio, enabled)
        for rows in self._slots.buckets.all():
            text, codec = self._text_batches.with_rows(rows), self._codec_batches.with_rows(rows)
            for text.candidates in (GREEDY, FEW, ALL):
                self._run.capture("text", self._text_step, text, enabled)
            for codec.samples in (False, True):
                self._codec.capture(codec, enabled)

    def _log_mel(self, rows: Sequence[Row]) -> Tensor:
        """Return the rows' log-mel [B, 128, T] with the extractor's floor, relative to each conversation's peak."""
        slots = [row.conversation.slot for row in rows]
        log_mel = torch.stack([row.input.log_mel for row in rows])
        loudest = log_mel.amax(dim=1).cummax(dim=1).values  # [B, T]
        peak = torch.maximum(loudest, self._slots.log_mel_peak[slots][:, None])
        self._slots.log_mel_peak[slots] = peak[:, -1]
        return normalise(log_mel, peak[:, None])

    def _encode(self, batch: AudioBatch) -> None:
        batch.embeddings.copy_(self.thinker.audio_encoder(batch.log_mel))

    def _append_audio(self, batch: AudioBatch) -> None:
        hidden = self.thinker.decoder.forward(batch.embeddings, batch.positions)[:, -1]
        self._slots.thinker_hidden[batch.slots] = hidden

    def _text_step(self, batch: TextBatch) -> None:
        batch.token.copy_(next_token(batch, self.thinker, self._slots))
        embeddings = self.thinker.embed(batch.token[:, None])
        hidden = self.thinker.decoder.forward(embeddings, batch.positions)[:, -1]
        self._slots.thinker_hidden[batch.slots] = hidden
        self._slots.text_condition[batch.slots] = self._slots.row_minimums.apply(self.talker.project_text, hidden)

    def _prompt_tokens(self, system_prompt: str) -> list[int]:
        if not system_prompt:
            return []
        turn = [{"role": "system", "content": system_prompt}]
        text = self._tokenizer.apply_chat_template(turn, tokenize=False)
        tokens: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return tokens

    def _prefill_prefix(self, embeddings: Tensor) -> Tensor:
        """Return the talker's keys and values for embeddings [1, n, H'], computed in the padding slot."""
        slot, length = self._slots.padding_slot, embeddings.shape[1]
        self.talker.decoder.forward(embeddings, CachePositions.of([slot], [0], self._device))
        return self._slots.talker_cache.snapshot(slot, length)
