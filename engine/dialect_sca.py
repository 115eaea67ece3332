"""The dialect `sca`: time-aligned, for a checkpoint fine-tuned for duplex.

In a tick the mel frames become audio tokens and are fed to the thinker; it then emits text tokens, and each one's
last hidden state, through the talker's text projection, conditions an equal share of the tick's codec frames:
4 : 2 : 4 in 320 ms. The talker hears the sum of the 16 embeddings of the frame before.

A conversation begins, for the thinker, with the system prompt's turn (if there is one) and `<|audio_start|>`; for the
talker with transformers' own opening of an answer, which names the voice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from config.settings import Settings
from engine.batch import Batch, Place, ladder, rung
from engine.checkpoint import Checkpoint
from engine.conversation import Conversation, Event, Heard, ScaConversation, Spoken
from engine.errors import ContextFullError, OptionError
from engine.graphs import Step, Steps, Variant
from engine.memory import TALKER_OPENING
from engine.openings import Openings
from engine.options import Controls, Options
from engine.sampler import Warp, draw
from engine.speaker import Speaker
from engine.stopwatch import Stopwatch
from engine.text import TextStream
from engine.thinker import Thinker

DRAWING = ("text", "talker", "code predictor")  # steps with a greedy and a sampling variant
LEAVING_SHARE = 8  # when a context is full, one in so many of its ticks leaves


class ScaDialect:
    """Ticks of the dialect over one thinker and one talker."""

    def __init__(self, checkpoint: Checkpoint, settings: Settings):
        config, engine = checkpoint.model.config, settings.engine
        self._config = config
        self._tokenizer = checkpoint.tokenizer
        self._prompt_positions = engine.prompt_positions
        self._text_tokens = engine.text_tokens_per_tick
        self._frames = settings.audio.codec_frames
        self._settings = settings
        self._slots = engine.slots
        self.context_ticks = settings.context_ticks
        self._thinker_step = self._frames + self._text_tokens

        rows = rung(engine.slots, engine.slots, checkpoint.model.device)
        self.thinker = Thinker(
            checkpoint.model.thinker, engine.slots, engine.prompt_positions + self.context_ticks * self._thinker_step
        )
        self.speaker = Speaker(
            checkpoint.model, engine.slots, rows, TALKER_OPENING + self.context_ticks * self._frames, ends=False
        )
        self.talker = self.speaker.talker
        self.device = self.thinker.decoder.device
        self._thinker_openings = Openings(engine.prompts_kept)
        self._talker_openings = Openings(len(config.talker_config.speaker_id))
        self._sampler = self.speaker.sampler
        self._draws = self._text_tokens + self._frames * self.talker.codebooks  # numbers of a tick
        self._batches: dict[int, Batch] = {}
        self.rehearsal: Sequence[Controls] = (Controls(), Controls())
        self.stopwatch = Stopwatch(self.device)
        self._run = Steps()

    def begin(self, slot: int, options: Options) -> ScaConversation:
        """A conversation, its openings in its slot. Raises `OptionError` when the system prompt is too long."""
        tokens = self._opening_tokens(options.system_prompt)
        self.thinker.decoder.place(slot, self._thinker_openings.get(tuple(tokens), lambda: self._read_prompt(tokens)))
        self.talker.decoder.place(
            slot, self._talker_openings.get(options.voice, lambda: self._read_voice(options.voice))
        )
        self.speaker.begin(slot)
        self._sampler.place(slot, options)
        return ScaConversation(slot, options, TextStream(self._tokenizer), opening=len(tokens))

    def end(self, slot: int) -> None:
        """Wipes a slot: nothing of its conversation is left."""
        self.thinker.decoder.wipe(slot)
        self.speaker.wipe(slot)

    def ready(self, conversation: Conversation) -> None:
        """Makes room for a tick in the conversation's context. Raises `ContextFullError` where it may not."""
        assert isinstance(conversation, ScaConversation)
        if conversation.ticks < self.context_ticks:
            return
        if self._settings.engine.context_full == "stop":
            raise ContextFullError(
                f"the conversation has filled its context of {self._settings.engine.context_s} s (engine.context_s): "
                "reset it, open another, or serve with engine.context_full = 'slide'"
            )
        with self.stopwatch("slide"):
            self.slide(conversation)

    def slide(self, conversation: ScaConversation) -> None:
        """Lets the oldest ticks leave. The openings and the first tick stay: attention leans on first positions."""
        leaving = max(1, self.context_ticks // LEAVING_SHARE)
        for decoder, opening, step in (
            (self.thinker.decoder, conversation.opening, self._thinker_step),
            (self.talker.decoder, TALKER_OPENING, self._frames),
        ):
            decoder.forget(
                conversation.slot,
                kept=opening + step,
                leaving=leaving * step,
                length=opening + conversation.ticks * step,
            )
        conversation.ticks -= leaving

    def positions(self, conversation: Conversation) -> int:
        """How many positions of the thinker's cache the conversation takes."""
        assert isinstance(conversation, ScaConversation)
        return conversation.opening + conversation.ticks * self._thinker_step

    def tick(self, conversations: Sequence[Conversation], heard: Sequence[Heard]) -> list[Spoken]:
        """One tick of each conversation, sorted by slot."""
        rows = [conversation for conversation in conversations if isinstance(conversation, ScaConversation)]
        batch = self._batch(rung(len(rows), self._slots, self.device))
        batch.fill([self._place(conversation) for conversation in rows], torch.stack([h.log_mel for h in heard]))
        batch.speaking.sampled = any(conversation.options.samples for conversation in rows)
        self._tick(batch)
        said = batch.said[: len(rows)].to("cpu", copy=True)  # the host waits for the device
        tokens, codes = said.split([self._text_tokens, said.shape[1] - self._text_tokens], dim=1)
        codes = codes.unflatten(1, (self._frames, -1)).transpose(1, 2)
        results = []
        for conversation, spoken, frames in zip(rows, tokens.tolist(), codes, strict=True):
            conversation.ticks += 1
            conversation.age += 1
            text = conversation.text.feed(spoken)
            at_ms = conversation.age * self._settings.audio.tick_ms
            events: list[Event] = [{"type": "text", "at_ms": at_ms, "text": text}] if text else []
            results.append(Spoken(frames, spoken, text, events))
        return results

    def rehearse(self, capture: bool) -> None:
        """Runs the steps of a tick for every size of batch on CUDA, in padding alone, and captures them."""
        for rows in ladder(self._slots, self.device):
            batch = self._batch(rows)
            for name, step in self._steps().items():
                for sampled in (False, True) if name in DRAWING else (False,):
                    batch.speaking.sampled = sampled
                    batch.slots.fill_(self._slots)
                    batch.thinker.starts.zero_()
                    batch.speaking.cursor.starts.zero_()
                    self._run.rehearse(self._variant(name, batch), step, batch, capture)

    def _tick(self, batch: Batch) -> None:
        tokens = self._text_tokens
        frames = batch.said[:, tokens:].unflatten(1, (self._frames, -1))
        self._run_step("encoder", batch)
        self._run_step("prefill", batch)
        frame = 0
        for token in range(tokens):
            self._run_step("text", batch)
            batch.said[:, token] = batch.token
            for _ in range(self._frames // tokens):
                self._run_step("talker", batch)
                self._run_step("code predictor", batch)
                frames[:, frame] = batch.speaking.codes
                frame += 1

    def _run_step(self, name: str, batch: Batch) -> None:
        with self.stopwatch(name):
            self._run(self._variant(name, batch), self._steps()[name], batch)

    def _variant(self, name: str, batch: Batch) -> Variant:
        return name, batch.rows, batch.speaking.sampled and name in DRAWING

    def _steps(self) -> dict[str, Step]:
        return {
            "encoder": self._hear,
            "prefill": self._listen,
            "text": self._write,
            "talker": lambda batch: self.speaker.speak(batch.speaking),
            "code predictor": lambda batch: self.speaker.complete(batch.speaking),
        }

    def _hear(self, batch: Batch) -> None:
        batch.heard.copy_(self.thinker.hear(batch.log_mel))

    def _listen(self, batch: Batch) -> None:
        batch.hidden.copy_(self.thinker.decoder.forward(batch.heard, batch.thinker)[:, -1])

    def _write(self, batch: Batch) -> None:
        batch.token.copy_(self._draw(batch, self.thinker.logits(batch.hidden), self._sampler.text))
        hidden = self.thinker.decoder.forward(self.thinker.embed(batch.token[:, None]), batch.thinker)[:, -1]
        batch.hidden.copy_(hidden)
        self.speaker.conditions[batch.slots] = self.talker.project_text(hidden)

    def _draw(self, batch: Batch, logits: Tensor, how: Callable[[Tensor], Warp]) -> Tensor:
        """One token of each row [R], from logits [R, V]."""
        if not batch.speaking.sampled:
            return logits.argmax(dim=-1)
        (number,) = self._sampler.numbers(batch.slots, batch.speaking.drawn, 1).unbind(1)
        batch.speaking.drawn += 1
        return draw(logits, how(batch.slots), number)

    def _place(self, conversation: ScaConversation) -> Place:
        return Place(
            slot=conversation.slot,
            thinker=self.positions(conversation),
            talker=TALKER_OPENING + conversation.ticks * self._frames,
            drawn=conversation.age * self._draws,
        )

    def _batch(self, rows: int) -> Batch:
        if rows not in self._batches:
            self._batches[rows] = Batch.of_padding(rows, self._slots, self.thinker, self.talker, self._settings)
        return self._batches[rows]

    def _opening_tokens(self, system_prompt: str) -> list[int]:
        """The thinker's opening. Raises `OptionError` when it is longer than the slot's share for it."""
        tokens: list[int] = []
        if system_prompt:
            turn = [{"role": "system", "content": system_prompt}]
            text = self._tokenizer.apply_chat_template(turn, tokenize=False)
            tokens += self._tokenizer.encode(text, add_special_tokens=False)
        tokens.append(self._config.thinker_config.audio_start_token_id)
        if len(tokens) > self._prompt_positions:
            raise OptionError(
                f"system_prompt is {len(tokens)} tokens long, expected at most {self._prompt_positions} "
                "(engine.prompt_positions)"
            )
        return tokens

    def _read_prompt(self, tokens: list[int]) -> Tensor:
        return self.thinker.decoder.read(self.thinker.embed(self._tokens(tokens)))

    def _read_voice(self, voice: str) -> Tensor:
        return self.talker.decoder.read(self.speaker.opening(self.thinker, voice))

    def _tokens(self, tokens: list[int]) -> Tensor:
        return torch.tensor([tokens], device=self.device)
