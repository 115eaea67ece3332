"""The dialect `turn`: for the stock Qwen3-Omni, which answers when the user's turn has ended.

While the user speaks, the thinker prefills each window of the audio when it is complete; when the user stops, the rest
of the audio and the answer's opening. The answer begins in the same tick: one text token a codec frame, four frames a
tick, until text and speech have ended. Tokens and codes equal those of transformers' `generate()` for the conversation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from config.options import Options
from config.settings import Settings, TurnSettings
from contract.controls import Controls
from engine.buckets import BatchPool
from engine.cache_layout import Evictions
from engine.checkpoint import Checkpoint
from engine.code_predictor import CodePredictor
from engine.codec_decoder import CodecBatch, CodecDecoder, no_frames
from engine.detokenizer import Detokenizer
from engine.dialect import Row
from engine.graph_runner import GraphRunner
from engine.prompt import PrefillBudget, PromptPrefill
from engine.sampler import ALL, FEW, GREEDY
from engine.slots import SlotState
from engine.talker import Talker
from engine.talker_prefix import talker_prefix
from engine.text_decoder import TextBatch, next_token
from engine.thinker import Thinker
from engine.tick import TickOutput, TickResult
from engine.turn.actions import Decode, Prefill, TurnConfig
from engine.turn.chat_template import ChatTemplate
from engine.turn.conversation import TurnConversation
from engine.turn.plan import TurnPlan, codec_row, text_row
from engine.turn.prefill import PrefillRow, TurnPrefill
from engine.turn.speaker_classifier import SpeakerClassifier
from engine.vad import Vad


class TurnDialect:
    """The four stages of a tick."""

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
        self._slots, self._frames = slots, settings.audio.codec_frames
        self._prefill_tokens = engine.prefill_tokens
        self.thinker = Thinker(model.thinker, slots.thinker_cache)
        self.talker = Talker(model.talker, slots.talker_cache)
        self._codec = CodecDecoder(self.talker, predictor, slots, runner, ends=True)
        self._device = self.thinker.decoder.device
        self._run = runner

        self.chat = ChatTemplate(checkpoint.tokenizer, config)
        self._prefill = TurnPrefill(
            self.thinker, self.talker, slots, self.chat.audio, config.talker_config.accept_hidden_layer, runner
        )
        context = settings.context_ticks * self._frames
        longest_prompt = engine.prompt_positions + context // 2
        self._prompts = PromptPrefill(self.thinker, slots, engine, longest_prompt, runner)
        encoder = self.thinker.audio_encoder
        self._config = TurnConfig(
            chat=self.chat,
            decode=partial(checkpoint.tokenizer.decode, skip_special_tokens=True),
            detokenizer=partial(Detokenizer, checkpoint.tokenizer),
            audio_tokens=encoder.tokens,
            window_frames=encoder.window,
            thinker_positions=engine.prompt_positions + context,
            talker_positions=context,
            frames_per_tick=self._frames,
            codebooks=self.talker.codebooks,
            codebook_size=self.talker.codebook_size,
            heard_tokens_per_s=settings.turn.heard_tokens_per_s,
            stops_when_full=engine.context_full == "stop",
            expect_possible=self._expect_possible,
        )
        self._vad = Vad() if settings.turn.detection == "server_vad" else None
        self._classifier = SpeakerClassifier(self.thinker, self.chat, slots)
        self._voices = {
            voice: talker_prefix(config, self.thinker, self.talker, voice)[0]
            for voice in config.talker_config.speaker_id
        }
        ends = torch.tensor([config.tts_eos_token_id, config.tts_pad_token_id], device=self._device)
        self._text_end, self._no_text = self.talker.project_text(self.thinker.embed(ends))  # [H'] each
        self._text_batches = BatchPool(
            lambda rows: TextBatch(rows, self._frames, slots, self.thinker),
            slots.buckets,
        )
        self._codec_batches = BatchPool(
            lambda rows: CodecBatch(rows, self._frames, slots, self.talker),
            slots.buckets,
        )
        ticks = (Controls(), Controls(listen=True), Controls(commit=True), Controls())
        self.warm_up_controls: Sequence[Controls] = ticks

    def begin(self, slot: int, options: Options) -> TurnConversation:
        """Return a conversation in a slot that was reset. Raises `OptionError`."""
        prompt = self.chat.system(options.system_prompt)
        if options.turn.detection == "server_vad":
            self._vad = self._vad or Vad()
        self._expect_possible(options.turn)
        conversation = TurnConversation(slot, options, self._config, prompt)
        conversation.prompt_chunk_prefilled(self._prompts.begin(slot, prompt))
        self._slots.talker_prefix[slot] = self._voices[options.voice]
        self._slots.begin(slot, options)
        return conversation

    def _expect_possible(self, turn: TurnSettings) -> None:
        """Raise `OptionError` for questions about the speaker that are too long."""
        for name in ("emotion", "language"):
            if labels := turn.selected_labels(name):
                self._classifier.expect_possible(name, labels)

    def schedule(self, rows: Sequence[Row]) -> TurnPlan:
        """Advance every conversation by a tick and plan what is computed in it."""
        plan = TurnPlan([row.conversation for row in rows])
        probabilities = self._speech_probabilities(rows)
        for row in rows:
            with _isolated(plan, row.conversation):
                self._slots.mel[row.conversation.slot].append(row.input.log_mel, row.input.pcm)
                frames = row.input.log_mel.shape[1]
                windows = probabilities.get(row.conversation.slot, [])
                row.conversation.advance(frames, row.input.controls, windows)
                plan.evictions[row.conversation.slot] = row.conversation.take_evictions()
        budget = PrefillBudget(self._prefill_tokens)
        plan.prompts = self._prompts.schedule(plan.conversations, budget)
        plan.prefills = self._schedule_prefills(plan, budget)
        for conversation in plan.conversations:
            with _isolated(plan, conversation):
                if decode := conversation.next_decode():
                    plan.decodes[conversation.slot] = decode
                self._slots.mel[conversation.slot].drop_before(conversation.oldest_frame)
        return plan

    def prefill(self, plan: TurnPlan) -> None:
        """Run the evictions, then prefill prompts, then chunks of turns, a round at a time."""
        for conversation in plan.conversations:
            with _isolated(plan, conversation):
                self._evict(conversation.slot, plan.evictions[conversation.slot])
        self._prompts.run(plan.prompts)
        for rows in plan.prefills:
            for row in rows:
                self._evict(row.slot, row.prefill.evictions)
            self._prefill.run(rows)
            for row in rows:
                if row.prefill.chunk.opening:
                    self._slots.begin_speech(row.slot)

    def decode(self, plan: TurnPlan) -> None:
        """Decode a tick of all answers: a text token, then a codec frame, for each frame of the tick."""
        for slot, decode in plan.decodes.items():
            self._evict(slot, decode.evictions)
            if not decode.emits_text:
                self._slots.text_condition[slot] = self._no_text
        by_slot = {conversation.slot: conversation for conversation in plan.conversations}
        text, codec = plan.decoding("text"), plan.decoding("frames")
        if text:
            plan.text = self._text_batches.of(len(text))
            plan.text.fill([text_row(by_slot[slot], plan.decodes[slot]) for slot in text])
        if codec:
            plan.codec = self._codec_batches.of(len(codec))
            plan.codec.fill([codec_row(by_slot[slot], plan.decodes[slot]) for slot in codec])
        for frame in range(self._frames):
            if plan.text:
                self._run("text", self._text_step, plan.text)
                plan.text.tick[:, frame] = plan.text.token
            if plan.codec:
                self._codec.decode_frame(plan.codec, frame)
        with self._run.timer("speaker"):
            busy = any(decode.is_first for decode in plan.decodes.values())
            for conversation in self._classifier.next_conversations(plan.conversations, busy):
                with _isolated(plan, conversation):
                    self._classifier.answer(conversation)

    def postprocess(self, plan: TurnPlan) -> dict[int, TickResult]:
        """Return the results by slot. Device-to-host copies: the only synchronisation in a tick."""
        tokens = plan.text.tick.tolist() if plan.text else []
        frames = [*plan.codec.tick.to("cpu", copy=True)] if plan.codec else []
        tokens_of = dict(zip(plan.decoding("text"), tokens, strict=False))  # rows past the slots are padding
        frames_of = dict(zip(plan.decoding("frames"), frames, strict=False))
        results: dict[int, TickResult] = {}
        for conversation in plan.conversations:
            with _isolated(plan, conversation):
                slot, decode = conversation.slot, plan.decodes.get(conversation.slot)
                results[slot] = self._output(conversation, decode, tokens_of.get(slot, []), frames_of.get(slot))
        return {**results, **plan.failures}

    def capture(self, enabled: bool) -> None:
        """Run every step at every batch size on CUDA, and capture it as a graph if `enabled`."""
        self._classifier.warm_up()
        self._prompts.capture(enabled)
        self._prefill.capture(enabled)
        for rows in self._slots.buckets.all():
            text, codec = self._text_batches.with_rows(rows), self._codec_batches.with_rows(rows)
            for text.candidates in (GREEDY, FEW, ALL):
                self._run.capture("text", self._text_step, text, enabled)
            for codec.samples in (False, True):
                self._codec.capture(codec, enabled)

    def _speech_probabilities(self, rows: Sequence[Row]) -> dict[int, list[float]]:
        """Return the probabilities by slot, for conversations whose turns are detected by voice activity."""
        detecting = [row for row in rows if row.conversation.detects_turns]
        if not detecting:
            return {}
        self._vad = self._vad or Vad()
        slots = [row.conversation.slot for row in detecting]
        with self._run.timer("vad"):
            found = self._vad(self._slots.vad, slots, [row.input.pcm for row in detecting])
        return dict(zip(slots, found, strict=True))

    def _output(
        self, conversation: TurnConversation, decode: Decode | None, tokens: list[int], codes: Tensor | None
    ) -> TickOutput:
        """Return the output of a conversation from the text tokens and codes [frames, 16] of its tick."""
        output = TickOutput(no_frames(self.talker.codebooks, self._frames), [], "")
        if decode:
            decoded = conversation.decoded(tokens, [] if codes is None else codes[:, 0].tolist())
            output.tokens, output.text = decoded.tokens, decoded.text
            if codes is not None and decoded.frames:
                output.codes[:, : decoded.frames] = codes[: decoded.frames].T
                output.begins = decode.is_first
        conversation.finish_tick()
        output.events = conversation.events
        return output

    def _schedule_prefills(self, plan: TurnPlan, budget: PrefillBudget) -> list[list[PrefillRow]]:
        """Return rounds of chunks, one of each conversation a round, as far as the budget allows."""
        rounds = []
        waiting = [c for c in plan.conversations if not c.has_prompt_left]
        while waiting:
            rows = []
            for conversation in sorted(waiting, key=lambda c: c.waited_ticks, reverse=True):
                prefill = None
                with _isolated(plan, conversation):
                    prefill = self._next_prefill(conversation, budget)
                    if prefill:
                        clip = prefill.chunk.clip
                        log_mel = self._slots.mel[conversation.slot].clip(clip) if clip else None
                        rows.append(PrefillRow(conversation.slot, prefill, log_mel))
                if prefill is None or conversation.slot in plan.failures:
                    waiting.remove(conversation)
            if rows:
                rounds.append(sorted(rows, key=lambda row: row.slot))
        return rounds

    def _next_prefill(self, conversation: TurnConversation, budget: PrefillBudget) -> Prefill | None:
        chunk = conversation.next_chunk
        if chunk and chunk.clip and chunk.clip.ends_turn:
            stale = self._slots.mel[conversation.slot].first_stale(chunk.clip)
            if stale is not None:
                conversation.prefill_again(stale)
                self._run.timer.counts["windows_prefilled_again"] += 1
                chunk = conversation.next_chunk
        if chunk is None or not budget.take(self._prefill.size(chunk).tokens):
            return None
        return conversation.next_prefill()

    def _evict(self, slot: int, evictions: Sequence[Evictions]) -> None:
        for eviction in evictions:
            with self._run.timer("evict"):
                self._slots.evict(slot, eviction)

    def _text_step(self, batch: TextBatch) -> None:
        """Sample a token of each row, which conditions the next codec frame, and append it: the step `text`."""
        slots = self._slots
        token = next_token(batch, self.thinker, slots)
        batch.token.copy_(token)
        ends = (token == self.chat.end) | (
            batch.tokens_left == 1
        )  # in transformers the talker does not receive the last token
        batch.tokens_left -= 1
        embedding = self.thinker.embed(token)
        projected = slots.row_minimums.apply(self.talker.project_text, embedding)
        condition = torch.where(ends[:, None], self._text_end, projected)
        condition = torch.where(slots.text_ended[batch.slots][:, None], self._no_text, condition)
        slots.text_condition[batch.slots] = condition
        slots.text_ended[batch.slots] |= ends
        slots.thinker_hidden[batch.slots] = self.thinker.decoder.forward(embedding[:, None], batch.positions)[:, -1]


@contextmanager
def _isolated(plan: TurnPlan, conversation: TurnConversation) -> Iterator[None]:
    """Limit an error in the block to its conversation: the others continue."""
    try:
        yield
    except Exception as error:
        plan.fail(conversation, error)
