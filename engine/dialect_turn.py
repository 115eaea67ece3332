"""The dialect `turn`: for the stock Qwen3-Omni, which answers when the user's turn has ended.

While the user speaks, the thinker reads each window of their sound as it completes; when they stop, what is left of it
and the answer's opening. In the same tick the answer begins: one text token a codec frame, four frames a tick, until
text and speech have ended. All of it is what transformers' `generate()` does with the whole conversation as its prompt.

The thinker's cache goes on from turn to turn, the talker's as far as users' parts go. A row's positions behind its end
hold what padding wrote, and are never attended to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from config.settings import Settings
from engine.attention import Cursor
from engine.batch import ladder, rung, set_rows
from engine.checkpoint import Checkpoint
from engine.conversation import Conversation, Heard, Spoken
from engine.dialect import Said
from engine.errors import ConversationError, OptionError
from engine.graphs import Step, Steps
from engine.memory import QUESTION_SPARE, TALKER_OPENING, TURN_SPARE
from engine.openings import Openings
from engine.options import Controls, Options
from engine.sampler import draw
from engine.speaker import Speaker, Speaking
from engine.stopwatch import Stopwatch
from engine.thinker import Thinker
from engine.turn.chat import Chat
from engine.turn.conversation import Answer, Rules, TurnConversation
from engine.turn.history import Turn
from engine.turn.perception import Perception
from engine.turn.reader import MOST_ROWS, Reader, Size
from engine.turn.vad import Vad

TEXT_NUMBERS = 2**40  # where a conversation's numbers for text begin: far behind those for codes


class Writing:
    """Rows that write text, R of them. The tensors keep their place in memory."""

    def __init__(self, rows: int, frames: int, spare: int, device: torch.device):
        def integers(*shape: int) -> Tensor:
            return torch.zeros(rows, *shape, dtype=torch.int64, device=device)

        self.slots = integers() + spare
        self.drawn = integers()  # [R], numbers drawn so far
        self.left = integers()  # [R], tokens that the answer may still have
        self.cursor = Cursor(self.slots, integers())  # the thinker's
        self.token = integers()  # [R], this step's
        self.said = integers(frames)  # [R, frames], the tick's
        self.sampled = False


class TurnDialect:
    """Ticks of the dialect over one thinker and one talker."""

    def __init__(self, checkpoint: Checkpoint, settings: Settings):
        model, engine = checkpoint.model, settings.engine
        config = model.config
        self._tokenizer = checkpoint.tokenizer
        self._slots, self._frames = engine.slots, settings.audio.codec_frames
        self._prompt_positions = engine.prompt_positions
        self._stops = engine.context_full == "stop"
        context = settings.context_ticks * self._frames
        self._thinker_positions = engine.prompt_positions + context
        self._talker_positions = context
        rows = rung(engine.slots, engine.slots, model.device)
        slots = engine.slots + 1  # one more for the branch on which the model is asked about a speaker
        self.thinker = Thinker(model.thinker, slots, self._thinker_positions + TURN_SPARE + QUESTION_SPARE)
        self.speaker = Speaker(model, engine.slots, rows, self._talker_positions + TURN_SPARE, ends=True)
        self.talker = self.speaker.talker
        self.device = self.thinker.decoder.device
        self._sampler = self.speaker.sampler

        self.chat = Chat(checkpoint.tokenizer, config)
        tap = config.talker_config.accept_hidden_layer
        self._reader = Reader(self.thinker, self.speaker, engine.slots, self.chat.audio, tap)
        encoder = self.thinker.hear
        self._rules = Rules(
            chat=self.chat,
            tokenizer=checkpoint.tokenizer,
            window_frames=encoder.window,
            window_tokens=encoder.tokens(encoder.window),
            audio_tokens=encoder.tokens,
            heard_tokens_per_s=settings.turn.heard_tokens_per_s,
            longest_turn=min(context, self._talker_positions) - TALKER_OPENING - self._frames,
        )
        self._vad = Vad() if settings.turn.detection == "server_vad" else None
        self._perception = Perception(self.thinker, self.chat, branch=engine.slots + 1)
        self._prompts = Openings(engine.prompts_kept)
        self._voices = {
            voice: self.speaker.opening(self.thinker, voice)[0] for voice in config.talker_config.speaker_id
        }
        ends = torch.tensor([config.tts_eos_token_id, config.tts_pad_token_id], device=self.device)
        self._text_end, self._no_text = self.talker.project_text(self.thinker.embed(ends))  # [H'] each
        self._is_written = torch.zeros(engine.slots + 1, dtype=torch.bool, device=self.device)
        self._writing: dict[int, Writing] = {}
        self._speaking: dict[int, tuple[Speaking, Tensor]] = {}  # rows, and a tick's codes [R, frames, 16]
        self.rehearsal: Sequence[Controls] = (Controls(), Controls(listen=True), Controls(commit=True), Controls())
        self.stopwatch = Stopwatch(self.device)
        self._run = Steps()

    def begin(self, slot: int, options: Options) -> TurnConversation:
        """A conversation in a slot. Raises `OptionError` when the system prompt is too long."""
        tokens = self.chat.system(options.system_prompt)
        if len(tokens) > self._prompt_positions:
            raise OptionError(
                f"system_prompt is {len(tokens)} tokens long, expected at most {self._prompt_positions} "
                "(engine.prompt_positions)"
            )
        if options.turn.detection == "server_vad":
            self._vad = self._vad or Vad()
        for name in ("emotion", "language"):
            if labels := options.turn.asked(name):
                self._perception.expect_possible(name, labels)
        if tokens:
            self.thinker.decoder.place(slot, self._prompts.get(tuple(tokens), lambda: self._read_prompt(tokens)))
        self._reader.openings[slot] = self._voices[options.voice]
        self._sampler.place(slot, options)
        return TurnConversation.begin(slot, options, self._rules, opening=len(tokens))

    def end(self, slot: int) -> None:
        """Wipes a slot: nothing of its conversation is left."""
        self.thinker.decoder.wipe(slot)
        self.speaker.wipe(slot)
        self._reader.hidden[slot] = 0
        self._reader.openings[slot] = 0
        self._is_written[slot] = False

    def ready(self, conversation: Conversation) -> None:
        """A tick is always possible; what does not fit into the context makes room as it comes."""

    def positions(self, conversation: Conversation) -> int:
        """How many positions of the thinker's cache the conversation takes."""
        assert isinstance(conversation, TurnConversation)
        return conversation.history.thinker

    def tick(self, conversations: Sequence[Conversation], heard: Sequence[Heard]) -> list[Said]:
        """One tick of each conversation, sorted by slot; one that fails by itself gets its error."""
        everybody = [conversation for conversation in conversations if isinstance(conversation, TurnConversation)]
        failures = self._hear(everybody, heard)
        rows = [conversation for conversation in everybody if conversation.slot not in failures]
        self._read(rows)
        begins = {c.slot for c in rows if c.answer and not c.answer.frames and not c.answer.is_spoken}
        spoken = self._speak([conversation for conversation in rows if conversation.answer])
        with self.stopwatch("perception"):
            self._perception.ask(rows, busy=bool(begins))
        silence = torch.full((self.talker.codebooks, self._frames), -1)
        results: list[Said] = []
        for conversation in everybody:
            if conversation.slot in failures:
                results.append(failures[conversation.slot])
                continue
            codes, tokens, text = spoken.get(conversation.slot, (silence, [], ""))
            begun = conversation.slot in begins and bool(codes[0, 0] >= 0)
            results.append(Spoken(codes, tokens, text, conversation.events, begun))
        return results

    def rehearse(self, capture: bool) -> None:
        """Runs the steps of a tick for every size of batch on CUDA, in padding alone, and captures them."""
        self._perception.rehearse()
        for rows in ladder(min(MOST_ROWS, self._slots), self.device):
            for size in self._reader.sizes:
                reading = self._reader.batch(size, rows)
                reading.slots.fill_(self._slots)
                reading.thinker.starts.zero_()
                reading.talker.starts.zero_()
                self._run.rehearse(("read", rows, size), self._reader.read, reading, capture)
        for rows in ladder(self._slots, self.device):
            writing, (speaking, _) = self._writing_rows(rows), self._speaking_rows(rows)
            for batch in (writing, speaking):
                batch.slots.fill_(self._slots)
                batch.cursor.starts.zero_()
            for sampled in (False, True):
                writing.sampled = speaking.sampled = sampled
                self._run.rehearse(("text", rows, sampled), self._write, writing, capture)
                self._run.rehearse(("talker", rows, sampled), self.speaker.speak, speaking, capture)
                self._run.rehearse(("code predictor", rows, sampled), self.speaker.complete, speaking, capture)

    def _hear(self, rows: Sequence[TurnConversation], heard: Sequence[Heard]) -> dict[int, ConversationError]:
        """What each conversation makes of its tick; by slot, those that failed in it."""
        failures = {}
        with self.stopwatch("vad"):
            listening = [(c, h.pcm) for c, h in zip(rows, heard, strict=True) if c.detects and h.pcm is not None]
            found = self._vad([c.vad for c, _ in listening], [pcm for _, pcm in listening]) if self._vad else []
            probabilities = {c.slot: found for (c, _), found in zip(listening, found, strict=True)}
        for conversation, came in zip(rows, heard, strict=True):
            try:
                conversation.hear(came, probabilities.get(conversation.slot, []))
            except Exception as error:  # whatever one conversation does to itself, the others go on
                failures[conversation.slot] = ConversationError(f"the conversation failed and is closed: {error!r}")
        return failures

    def _read(self, rows: Sequence[TurnConversation]) -> None:
        """Reads what the conversations have queued, a piece of each at a time."""
        while ready := [c for c in rows if c.pieces and self._has_room(c)]:
            groups: dict[Size, list[TurnConversation]] = {}
            for conversation in ready:
                groups.setdefault(self._reader.size(conversation.pieces[0]), []).append(conversation)
            for size, alike in groups.items():
                most = MOST_ROWS if self.device.type == "cuda" else len(alike)
                for first in range(0, len(alike), most):
                    self._read_together(alike[first : first + most], size)

    def _has_room(self, conversation: TurnConversation) -> bool:
        """Whether the next piece fits, the oldest turns gone if need be; a turn that cannot is forgotten."""
        piece = conversation.pieces[0]
        coming = len(piece.tokens) + self._frames
        may_drop = not conversation.began_by_itself(piece.turn)
        if self._make_room(conversation, piece.turn, coming, coming + TALKER_OPENING, may_drop):
            return True
        conversation.fail_turn(
            "the context is full (engine.context_full = 'stop'): reset the conversation"
            if self._stops and len(conversation.history.turns) > 1
            else f"it is longer than the context of {self._talker_positions} positions (engine.context_s)"
        )
        return False

    def _make_room(
        self, conversation: TurnConversation, present: Turn, thinker: int, talker: int, may_drop: bool = True
    ) -> bool:
        """Drops the oldest turns until so many positions are free; False when that may not be, or is not enough."""
        history = conversation.history
        spoken = self._spoken_positions(conversation.answer)
        while (
            history.thinker + thinker > self._thinker_positions
            or history.talker + spoken + talker > self._talker_positions
        ):
            oldest = next(iter(history.turns), present)
            if oldest is present or self._stops or not may_drop:
                return False
            with self.stopwatch("slide"):
                for decoder, kept, leaving, length in (
                    (self.thinker.decoder, history.opening, oldest.thinker, history.thinker),
                    (self.talker.decoder, 0, oldest.user, history.talker + spoken),
                ):
                    decoder.forget(conversation.slot, kept, leaving, length)
            conversation.note_dropped(oldest)
        return True

    def _spoken_positions(self, answer: Answer | None) -> int:
        """Positions that an answer takes in the talker's cache."""
        if answer is None or not answer.turn.answer:
            return 0
        return len(self.chat.answer_opening) + TALKER_OPENING + answer.frames

    def _read_together(self, conversations: Sequence[TurnConversation], size: Size) -> None:
        count = len(conversations)
        rows = count if self.device.type == "cpu" else rung(count, min(MOST_ROWS, self._slots), self.device)
        batch = self._reader.batch(size, rows)
        pieces = [c.pieces[0] for c in conversations]
        self._reader.fill(batch, pieces, [(c.slot, c.history.thinker, c.history.talker) for c in conversations])
        with self.stopwatch("read"):
            self._run(("read", rows, size), self._reader.read, batch)
        for conversation, piece in zip(conversations, pieces, strict=True):
            conversation.note_read(piece)
            if piece.opening:
                self.speaker.begin(conversation.slot)
                self._is_written[conversation.slot] = False
                conversation.begin_answer()

    def _speak(self, answering: Sequence[TurnConversation]) -> dict[int, tuple[Tensor, list[int], str]]:
        """A tick of all answers: by slot codes [16, frames], text tokens, and what the text grew by."""
        going = []
        for conversation in answering:
            answer = conversation.answer
            assert answer is not None
            if self._make_room(conversation, answer.turn, self._frames, self._frames):
                going.append(conversation)
            else:
                conversation.finish("context")
        writers = [c for c in going if c.answer and not c.answer.is_written]
        speakers = [c for c in going if c.answer and not c.answer.is_spoken]
        writing, (speaking, codes) = self._fill_writing(writers), self._fill_speaking(speakers)
        for frame in range(self._frames):
            if writers:
                self._run_step("text", self._write, writing)
                writing.said[:, frame] = writing.token
            if speakers:
                self._run_step("talker", self.speaker.speak, speaking)
                self._run_step("code predictor", self.speaker.complete, speaking)
                codes[:, frame] = speaking.codes
        said = {
            c.slot: tokens for c, tokens in zip(writers, writing.said.tolist(), strict=False)
        }  # the host waits here
        frames = {c.slot: frames for c, frames in zip(speakers, codes.to("cpu", copy=True), strict=False)}
        return {c.slot: self._take(c, said.get(c.slot, []), frames.get(c.slot)) for c in going}

    def _take(
        self, conversation: TurnConversation, said: list[int], frames: Tensor | None
    ) -> tuple[Tensor, list[int], str]:
        """Settles a tick of an answer: what was said before its text and its speech ended."""
        conversation.written += len(said)
        tokens, text = conversation.write(said)
        codes = torch.full((self._frames, self.talker.codebooks), -1)
        if frames is not None:
            conversation.spoken += len(frames)
            count = conversation.speak(frames[:, 0].tolist(), self.talker.codebook_size)
            codes[:count] = frames[:count]
        if conversation.answer and conversation.answer.is_written:
            self._no_more_text(conversation.slot)
        conversation.finish()
        return codes.T, tokens, text

    def _no_more_text(self, slot: int) -> None:
        """The frames that follow hear that there is no text."""
        self.speaker.conditions[slot] = self._no_text

    def _fill_writing(self, writers: Sequence[TurnConversation]) -> Writing:
        batch = self._writing_rows(rung(max(1, len(writers)), self._slots, self.device))
        slots, starts = [c.slot for c in writers], [c.history.thinker for c in writers]
        drawn = [TEXT_NUMBERS + c.written for c in writers]
        left = [c.options.turn.answer_tokens - len(c.history.turns[-1].tokens) for c in writers]
        places = list(zip(slots, starts, drawn, left, strict=True))
        set_rows(places, self._slots, (batch.slots, batch.cursor.starts, batch.drawn, batch.left))
        batch.sampled = any(c.options.sampling.text_temperature > 0 for c in writers)
        if writers:
            batch.cursor.place(slots, starts)
        return batch

    def _fill_speaking(self, speakers: Sequence[TurnConversation]) -> tuple[Speaking, Tensor]:
        batch, codes = self._speaking_rows(rung(max(1, len(speakers)), self._slots, self.device))
        slots = [c.slot for c in speakers]
        starts = [c.history.talker + self._spoken_positions(c.answer) for c in speakers]
        drawn = [c.spoken * self.talker.codebooks for c in speakers]
        set_rows(
            list(zip(slots, starts, drawn, strict=True)), self._slots, (batch.slots, batch.cursor.starts, batch.drawn)
        )
        batch.sampled = any(c.options.sampling.temperature > 0 for c in speakers)
        if speakers:
            batch.cursor.place(slots, starts)
        return batch, codes

    def _writing_rows(self, rows: int) -> Writing:
        if rows not in self._writing:
            self._writing[rows] = Writing(rows, self._frames, self._slots, self.device)
        return self._writing[rows]

    def _speaking_rows(self, rows: int) -> tuple[Speaking, Tensor]:
        if rows not in self._speaking:
            speaking = Speaking.of_padding(rows, self._slots, self.talker)
            codes = torch.zeros(rows, self._frames, self.talker.codebooks, dtype=torch.int64, device=self.device)
            self._speaking[rows] = speaking, codes
        return self._speaking[rows]

    def _run_step(self, name: str, step: Step, batch: Any) -> None:
        with self.stopwatch(name):
            self._run((name, len(batch.slots), batch.sampled), step, batch)

    def _write(self, batch: Writing) -> None:
        """The step `text`: a token of each row is drawn, conditions the next codec frame, and is fed."""
        slots = batch.slots
        logits = self.thinker.logits(self._reader.hidden[slots])
        if batch.sampled:
            (number,) = self._sampler.numbers(slots, batch.drawn, 1).unbind(1)
            batch.drawn += 1
            token = draw(logits, self._sampler.text(slots), number)
        else:
            token = logits.argmax(dim=-1)
        batch.token.copy_(token)
        ends = (token == self.chat.end) | (batch.left == 1)  # transformers hears no last token, but its end
        batch.left -= 1
        embedding = self.thinker.embed(token)
        condition = torch.where(ends[:, None], self._text_end, self.talker.project_text(embedding))
        condition = torch.where(self._is_written[slots][:, None], self._no_text, condition)
        self.speaker.conditions[slots] = condition
        self._is_written[slots] |= ends
        self._reader.hidden[slots] = self.thinker.decoder.forward(embedding[:, None], batch.cursor)[:, -1]

    def _read_prompt(self, tokens: list[int]) -> Tensor:
        return self.thinker.decoder.read(self.thinker.embed(torch.tensor([tokens], device=self.device)))
