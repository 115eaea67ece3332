"""Oracle of the dialect `sca`: loops over transformers' own modules, caches and `generate()`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache


def signal_to_noise_db(reference: Tensor, found: Tensor) -> float:
    """Return the energy of the reference over the energy of the difference, in dB."""
    noise = (reference.double() - found.double()).square().sum()
    return float(10 * torch.log10(reference.double().square().sum() / noise.clamp(min=1e-300)))


class ScaOracle:
    """One greedy conversation in the dialect `sca`, computed step by step with transformers only."""

    def __init__(self, model: Any, tokenizer: Any, voice: str, system_prompt: str = "", text_tokens: int = 2):
        self.model, self.text_tokens = model, text_tokens
        self.voice, self.system_prompt = voice, system_prompt
        self.thinker_cache = DynamicCache(config=model.config.thinker_config.text_config)
        self.talker_cache = DynamicCache(config=model.config.talker_config.text_config)
        prompt = ""
        if system_prompt:
            prompt = tokenizer.apply_chat_template([{"role": "system", "content": system_prompt}], tokenize=False)
        ids = tokenizer(prompt + "<|audio_start|>", return_tensors="pt").input_ids.to(model.device)
        self._think(model.thinker.get_input_embeddings()(ids))

        config, talker = model.config, model.config.talker_config
        speaker = talker.speaker_id[voice]
        codec = [talker.codec_nothink_id, talker.codec_think_bos_id, talker.codec_think_eos_id, speaker]
        codec_embeds = model.talker.get_input_embeddings()(self._ids([*codec, talker.codec_pad_id]))
        text = self._ids([config.tts_pad_token_id] * 4 + [config.tts_bos_token_id])
        text_embeds = model.talker.text_projection(model.thinker.get_input_embeddings()(text))
        self._talk(codec_embeds + text_embeds)
        self.prefix_lengths = (self.thinker_cache.get_seq_length(), self.talker_cache.get_seq_length())
        self.recurrent = model.talker.get_input_embeddings()(self._ids([talker.codec_bos_id]))

    @torch.no_grad()
    def tick(self, log_mel: Tensor) -> tuple[list[int], Tensor]:
        """Compute one tick of log-mel [128, T]; return its text tokens and codes [16, frames]."""
        log_mel = log_mel.to(self.model.device, self.model.dtype)
        mask = torch.ones(1, log_mel.shape[1], dtype=torch.long, device=log_mel.device)
        audio = self.model.thinker.get_audio_features(log_mel[None], feature_attention_mask=mask).last_hidden_state
        frames_per_token = audio.shape[0] // self.text_tokens
        hidden = self._think(audio[None])
        tokens, frames = [], []
        for _ in range(self.text_tokens):
            token = self.model.thinker.lm_head(hidden).argmax(-1)
            tokens.append(int(token))
            hidden = self._think(self.model.thinker.get_input_embeddings()(token))
            condition = self.model.talker.text_projection(hidden)
            frames += [self._frame(condition) for _ in range(frames_per_token)]
        return tokens, torch.stack(frames, dim=1)

    def evict(self, kept_ticks: int, evicted_ticks: int, ticks: int) -> None:
        """Evict `evicted_ticks` of `ticks` after the first `kept_ticks` from both caches, as a sliding context does."""
        thinker, talker = self.model.thinker.model, self.model.talker.model
        caches = (self.thinker_cache, self.talker_cache)
        for cache, prefix, model in zip(caches, self.prefix_lengths, (thinker, talker), strict=True):
            step, rest = divmod(cache.get_seq_length() - prefix, ticks)
            assert rest == 0
            first, count = prefix + kept_ticks * step, evicted_ticks * step
            angles = torch.outer(torch.tensor([-float(count)]).double(), model.rotary_emb.inv_freq.double())
            rotation = torch.polar(torch.ones_like(angles), angles)  # complex numbers: not the engine's formula
            for layer in cache.layers:
                half = layer.keys.shape[-1] // 2
                moved = layer.keys[:, :, first + count :].double()
                rotated = torch.complex(moved[..., :half], moved[..., half:]) * rotation
                moved = torch.cat([rotated.real, rotated.imag], dim=-1).float()
                layer.keys = torch.cat([layer.keys[:, :, :first], moved], dim=2)
                layer.values = torch.cat([layer.values[:, :, :first], layer.values[:, :, first + count :]], dim=2)

    def _frame(self, condition: Tensor) -> Tensor:
        talker = self.model.talker
        hidden = self._talk(self.recurrent + condition)
        logits = talker.codec_head(hidden)
        logits[..., -1024:] = -torch.inf  # tokens that generate() suppresses, and the end of speech
        first = logits.argmax(-1)  # [1, 1]
        first_embed = talker.get_input_embeddings()(first)
        residual = talker.code_predictor.generate(
            inputs_embeds=torch.cat([hidden, first_embed], dim=1),
            max_new_tokens=talker.config.num_code_groups - 1,
            do_sample=False,
        )
        tables = talker.code_predictor.get_input_embeddings()
        embeds = [table(residual[:, i : i + 1]) for i, table in enumerate(tables)]
        self.recurrent = torch.cat([first_embed, *embeds], dim=1).sum(1, keepdim=True)
        return torch.cat([first[0], residual[0]])

    def _ids(self, ids: list[int]) -> Tensor:
        return torch.tensor([ids], device=self.model.device)

    @torch.no_grad()
    def _think(self, embeds: Tensor) -> Tensor:
        output = self.model.thinker.model(inputs_embeds=embeds, past_key_values=self.thinker_cache, use_cache=True)
        return output.last_hidden_state[:, -1:]

    @torch.no_grad()
    def _talk(self, embeds: Tensor) -> Tensor:
        output = self.model.talker.model(inputs_embeds=embeds, past_key_values=self.talker_cache, use_cache=True)
        return output.last_hidden_state[:, -1:]


@torch.no_grad()
def one_shot_waveform(code2wav: Any, codes: Tensor) -> Tensor:
    """Decode codes [16, frames] in one call; delay the waveform by 555 samples, as the stream does (1920 per frame)."""
    waveform = code2wav(codes[None])[0, 0]
    return torch.cat([torch.zeros(555), waveform])
