"""The dialect `sca`: time-aligned, for a checkpoint fine-tuned for duplex.

In a tick the mel frames become audio tokens and are fed to the thinker; it then emits text tokens, and each one's
last hidden state, through the talker's text projection, conditions an equal share of the tick's codec frames:
4 : 2 : 4 in 320 ms. The talker hears the sum of the 16 embeddings of the frame before.

A conversation begins, for the thinker, with the system prompt's turn (if there is one) and `<|audio_start|>`; for the
talker with transformers' own opening of an answer, which names the voice.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from config.settings import Settings
from engine.checkpoint import Checkpoint
from engine.conversation import Conversation
from engine.errors import OptionError
from engine.sampler import draw_code, draw_residual, draw_text
from engine.stopwatch import Stopwatch
from engine.talker import Talker
from engine.thinker import Thinker

TALKER_OPENING = 5  # positions of the talker's opening


class ScaDialect:
    """Ticks of the dialect over one thinker and one talker."""

    def __init__(self, checkpoint: Checkpoint, settings: Settings):
        self.stopwatch = Stopwatch()
        self._config = checkpoint.model.config
        self._tokenizer = checkpoint.tokenizer
        self._prompt_positions = settings.engine.prompt_positions
        self._text_tokens = settings.engine.text_tokens_per_tick
        self._frames_per_token = settings.audio.codec_frames // self._text_tokens
        ticks = -(-settings.engine.context_s * 1000 // settings.audio.tick_ms)
        self._thinker_step = settings.audio.codec_frames + self._text_tokens
        self._talker_step = settings.audio.codec_frames
        slots = settings.engine.slots
        self.thinker = Thinker(
            checkpoint.model.thinker, slots, positions=self._prompt_positions + ticks * self._thinker_step
        )
        self.talker = Talker(checkpoint.model.talker, slots, positions=TALKER_OPENING + ticks * self._talker_step)

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

    def begin(self, conversation: Conversation) -> None:
        """Feeds the openings. Raises `OptionError` when the system prompt is too long."""
        tokens = torch.tensor([self._opening_tokens(conversation.options.system_prompt)])
        self.thinker.decoder.forward(self.thinker.embed(tokens), [conversation.slot], [0])
        conversation.thinker_positions = tokens.shape[1]

        config, talker = self._config, self._config.talker_config
        voice = talker.speaker_id[conversation.options.voice]
        codec = [talker.codec_nothink_id, talker.codec_think_bos_id, talker.codec_think_eos_id, voice]
        codes = self.talker.embed(torch.tensor([[*codec, talker.codec_pad_id]]))
        text = self.thinker.embed(torch.tensor([[config.tts_pad_token_id] * 4 + [config.tts_bos_token_id]]))
        self.talker.decoder.forward(self.talker.project_text(text) + codes, [conversation.slot], [0])
        conversation.talker_positions = TALKER_OPENING
        conversation.heard_frame = self.talker.embed(torch.tensor(talker.codec_bos_id))

    def has_room(self, conversation: Conversation) -> bool:
        """Whether another tick fits into the conversation's caches."""
        return (
            conversation.thinker_positions + self._thinker_step <= self.thinker.decoder.positions
            and conversation.talker_positions + self._talker_step <= self.talker.decoder.positions
        )

    def tick(self, conversations: Sequence[Conversation], log_mel: Tensor) -> tuple[Tensor, Tensor]:
        """One tick of each conversation. log_mel: [B, 128, T] -> codes [B, 16, frames], text tokens [B, tokens]."""
        samplers = [conversation.sampler for conversation in conversations]
        with self.stopwatch("encoder"):
            heard = self.thinker.hear(log_mel)
        with self.stopwatch("prefill"):
            hidden = self._think(conversations, heard)
        tokens: list[Tensor] = []
        frames: list[Tensor] = []
        for _ in range(self._text_tokens):
            with self.stopwatch("text"):
                token = draw_text(self.thinker.logits(hidden), samplers)
                tokens.append(token)
                hidden = self._think(conversations, self.thinker.embed(token[:, None]))
                condition = self.talker.project_text(hidden)
            frames += [self._speak(conversations, condition) for _ in range(self._frames_per_token)]
        return torch.stack(frames, dim=2), torch.stack(tokens, dim=1)

    def _think(self, conversations: Sequence[Conversation], embeddings: Tensor) -> Tensor:
        """Feeds the thinker [B, T, H]; returns the last position's hidden state [B, H]."""
        slots = [conversation.slot for conversation in conversations]
        starts = [conversation.thinker_positions for conversation in conversations]
        hidden = self.thinker.decoder.forward(embeddings, slots, starts)[:, -1]
        for conversation in conversations:
            conversation.thinker_positions += embeddings.shape[1]
        return hidden

    def _speak(self, conversations: Sequence[Conversation], condition: Tensor) -> Tensor:
        """One codec frame of each conversation: condition [B, H'] -> codes [B, 16]."""
        samplers = [conversation.sampler for conversation in conversations]
        slots = [conversation.slot for conversation in conversations]
        starts = [conversation.talker_positions for conversation in conversations]
        heard = torch.stack([conversation.heard_frame for conversation in conversations])
        with self.stopwatch("talker"):
            hidden = self.talker.decoder.forward((heard + condition)[:, None], slots, starts)[:, -1]
            first = draw_code(self.talker.logits(hidden), samplers)
        with self.stopwatch("code predictor"):
            codes, total = self.talker.speak(hidden, first, partial(draw_residual, samplers=samplers))
        for conversation, embedding in zip(conversations, total, strict=True):
            conversation.talker_positions += 1
            conversation.heard_frame = embedding
        return codes
