"""Oracle of the dialect `turn`: transformers' `generate()` on a whole conversation, from raw samples.

The official feature extractor processes each turn's sound separately, with the processor's arguments.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.checkpoint import Checkpoint


def official_log_mel(extractor: Any, pcm: np.ndarray) -> Tensor:
    """Return transformers' features of PCM16 samples with the processor's arguments: [128, frames]."""
    clip = pcm.astype(np.float32) / 32768
    features = extractor(clip, sampling_rate=16_000, padding=True, truncation=False, return_tensors="pt")
    log_mel: Tensor = features["input_features"][0]
    return log_mel


@dataclass
class OracleAnswer:
    """Answer of `generate()`."""

    tokens: list[int]  # includes the end token
    codes: Tensor  # [16, frames]
    waveform: Tensor  # [samples]


class TurnOracle:
    """A conversation for transformers: each answer is generated from a prompt of the whole history."""

    def __init__(self, checkpoint: Checkpoint, speaker: str, system_prompt: str = ""):
        self.model, self.tokenizer, self.speaker = checkpoint.model, checkpoint.tokenizer, speaker
        self._extractor = checkpoint.feature_extractor
        self.messages: list[dict[str, Any]] = []
        if system_prompt:
            self.messages.append({"role": "system", "content": system_prompt})
        self.clips: list[Tensor] = []  # log-mel [128, T] each

    def add_user_turn(self, sound: np.ndarray | None, typed: str = "") -> None:
        """Append a user's turn to the history: PCM16 samples, text or both."""
        content: list[dict[str, str]] = []
        if sound is not None:
            content.append({"type": "audio", "audio": ""})
            self.clips.append(official_log_mel(self._extractor, sound))
        if typed:
            content.append({"type": "text", "text": typed})
        self.messages.append({"role": "user", "content": content})

    def add_answer(self, tokens: list[int]) -> None:
        """Append an answer to the history: the tokens that the user heard, without the end token."""
        self.messages.append({"role": "assistant", "content": tokens})

    def answer(self, answer_tokens: int, answer_frames: int, repetition_penalty: float = 1.05) -> OracleAnswer:
        """Generate a greedy answer to the history, with limits in text tokens and codec frames."""
        model = self.model
        decoded: list[Tensor] = []
        decode = model.code2wav.chunked_decode

        def chunked_decode(codes: Tensor, **how: Any) -> Tensor:
            decoded.append(codes)
            return decode(codes, **how)

        model.code2wav.chunked_decode = chunked_decode
        ids = self.prompt()
        try:
            sequences, waveform = model.generate(
                input_ids=torch.tensor([ids], device=model.device),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long, device=model.device),
                speaker=self.speaker,
                thinker_max_new_tokens=answer_tokens,
                thinker_eos_token_id=self.tokenizer.eos_token_id,
                talker_max_new_tokens=answer_frames,
                talker_do_sample=False,
                talker_repetition_penalty=repetition_penalty,
                **self.features(),
            )
        finally:
            del model.code2wav.chunked_decode
        return OracleAnswer(sequences[0, len(ids) :].tolist(), decoded[0][0].cpu(), waveform.flatten().cpu())

    def prompt(self) -> list[int]:
        """Return the conversation by the chat template, with one placeholder for each audio token of a clip."""
        lengths = iter(self._audio_tokens(clip.shape[1]) for clip in self.clips)
        ids: list[int] = []
        for message in self.messages:
            answer = message["content"] if message["role"] == "assistant" else None
            rendered = self._render([{**message, "content": "\0"}] if answer is not None else [message])
            if answer is not None:
                before, after = rendered.split("\0")
                ids += [*self._encode(before), *answer, *self._encode(after)]
                continue
            for token in self._encode(rendered):
                ids += [token] * (next(lengths) if token == self.model.config.thinker_config.audio_token_id else 1)
        last = self.messages[-1:]
        prompted: str = self.tokenizer.apply_chat_template(last, tokenize=False, add_generation_prompt=True)
        return ids + self._encode(prompted.removeprefix(self._render(last)))

    def _audio_tokens(self, frames: int) -> int:
        from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import _get_feat_extract_output_lengths

        return int(_get_feat_extract_output_lengths(torch.tensor(frames)))

    def features(self) -> dict[str, Tensor]:
        """Return the clips as arguments of `generate()`: padded features and their mask."""
        if not self.clips:
            return {}
        longest = max(clip.shape[1] for clip in self.clips)
        device = self.model.device
        features = torch.zeros(len(self.clips), 128, longest, device=device)
        mask = torch.zeros(len(self.clips), longest, dtype=torch.long, device=device)
        for row, clip in enumerate(self.clips):
            features[row, :, : clip.shape[1]] = clip
            mask[row, : clip.shape[1]] = 1
        return {"input_features": features, "feature_attention_mask": mask}

    def _render(self, messages: list[dict[str, Any]]) -> str:
        text: str = self.tokenizer.apply_chat_template(messages, tokenize=False)
        return text

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids
