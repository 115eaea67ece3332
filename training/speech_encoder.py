"""The audio encoder in training: features of the official extractor, and CTC losses on the transcript.

Two classifiers: the words' tokens, with the thinker's token embeddings as weights; and phonemes, two steps an audio
token, from the encoder's last hidden state. The phoneme classifier is used in training only.
"""

from __future__ import annotations

import random
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from piper.phonemize_espeak import EspeakPhonemizer
from torch import Tensor, nn
from transformers import WhisperFeatureExtractor
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeAudioEncoder

from config.settings import CODEC_FRAME_MS, INPUT_HZ, MEL_HOP
from engine.audio_encoder import AudioEncoder

PHONEMES = "_abdefhijklmnoprstuvwzæðŋɐɑɔəɚɛɜɡɪɹɾʃʊʌʒθᵻɒʔxɫɬ"  # the first is CTC's blank
TOKEN_S = CODEC_FRAME_MS / 1000  # duration of an audio token
MEL_PER_SECOND = INPUT_HZ // MEL_HOP


def masked(draw: random.Random, mel: Tensor, strength: float = 1.0) -> Tensor:
    """Set random bands and stretches of a log-mel [128, T] to its mean (SpecAugment)."""
    mel = mel.clone()
    for _ in range(2):
        width = draw.randint(0, round(20 * strength))
        start = draw.randrange(128 - width)
        mel[start : start + width] = mel.mean()
    for _ in range(1 + mel.shape[1] // 250):
        width = draw.randint(0, round(18 * strength))
        start = draw.randrange(max(1, mel.shape[1] - width))
        mel[:, start : start + width] = mel.mean()
    return mel


class Span(NamedTuple):
    """A word of a clip and its time."""

    word: str
    tokens: list[int]
    begin_s: float
    end_s: float


class CtcEncoder(nn.Module):
    """The encoder with the two classifiers of its training."""

    embeddings: Tensor  # [vocabulary, hidden]

    def __init__(self, encoder: Qwen3OmniMoeAudioEncoder, embeddings: Tensor, blank: int):
        super().__init__()
        self.encoder, self.blank = encoder, blank
        self.register_buffer("embeddings", embeddings.detach().clone(), persistent=False)
        self.scale = nn.Parameter(torch.tensor(0.05))
        self.bias = nn.Parameter(torch.zeros(len(embeddings)))
        self.phonemes = nn.Linear(encoder.config.d_model, 2 * len(PHONEMES))
        self._shape = AudioEncoder(encoder)
        self._hidden: list[Tensor] = []
        encoder.ln_post.register_forward_hook(lambda module, inputs, output: self._hidden.append(output))
        self._extractor = WhisperFeatureExtractor(feature_size=128)
        self._phonemizer = EspeakPhonemizer()
        self._phoneme_cache: dict[str, list[int]] = {}

    def mel(self, samples: np.ndarray) -> Tensor:
        """Compute the log-mel [128, T] of a clip, float32 at 16 kHz, by the official extractor."""
        features = self._extractor(samples, sampling_rate=INPUT_HZ, padding="do_not_pad", return_tensors="pt")
        return features["input_features"][0]

    def count(self, mel: Tensor) -> int:
        """Return the number of audio tokens of a log-mel [128, T]."""
        return self._shape.tokens(mel.shape[1])

    def forward(self, mels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return audio tokens [n, hidden] and last hidden states [n, d_model] of each log-mel [128, T]."""
        lengths = torch.tensor([mel.shape[1] for mel in mels])
        self._hidden.clear()
        tokens = self.encoder(torch.cat(mels, dim=1), feature_lens=lengths).last_hidden_state
        counts = [self.count(mel) for mel in mels]
        return list(tokens.split(counts)), list(self._hidden.pop().split(counts))

    def word_scores(self, tokens: Tensor) -> Tensor:
        """Return log probabilities [..., vocabulary] of audio tokens [..., hidden]."""
        return F.log_softmax(tokens @ self.embeddings.T * self.scale + self.bias, -1)

    def frame_loss(self, tokens: list[Tensor], hidden: list[Tensor], aligned: list[list[Span] | None]) -> Tensor:
        """Return the cross entropy of the word and the phoneme at each step of the clips with known word times.

        With CTC only, the first progress of the training takes much longer. A word's phonemes have equal durations.
        """
        words, phonemes, word_targets, phoneme_targets = [], [], [], []
        for token, last, spans in zip(tokens, hidden, aligned, strict=True):
            if spans is None:
                continue
            centres = self._centres_s(len(token))
            halves = torch.stack([centres - TOKEN_S / 4, centres + TOKEN_S / 4], 1).flatten()
            words.append(token)
            word_targets.append(_symbols_at(centres, [(s.begin_s, s.end_s, s.tokens) for s in spans], self.blank))
            phonemes.append(self.phonemes(last).reshape(-1, len(PHONEMES)))
            phoneme_targets.append(_symbols_at(halves, [(s.begin_s, s.end_s, self.spell(s.word)) for s in spans], 0))
        if not words:
            return tokens[0].new_zeros(())
        word_loss = F.nll_loss(self.word_scores(torch.cat(words)), torch.cat(word_targets))
        return word_loss + F.cross_entropy(torch.cat(phonemes), torch.cat(phoneme_targets))

    def _centres_s(self, count: int) -> Tensor:
        """Return the middle of each audio token of a clip in seconds; every block of the encoder starts a new token."""
        block, index = torch.arange(count) // self._shape.block_tokens, torch.arange(count) % self._shape.block_tokens
        return block * self._shape.block / MEL_PER_SECOND + (index + 0.5) * TOKEN_S

    def loss(self, tokens: list[Tensor], hidden: list[Tensor], targets: list[list[int]], texts: list[str]) -> Tensor:
        """Return the CTC loss of words and of phonemes, each as the mean of a label."""
        words = _ctc([self.word_scores(t) for t in tokens], targets, self.blank)
        shape = (-1, len(PHONEMES))
        scores = [F.log_softmax(self.phonemes(h).reshape(shape), -1) for h in hidden]
        return words + 0.5 * _ctc(scores, [self.spell(text) for text in texts], 0)

    def spell(self, text: str) -> list[int]:
        """Return the indices of a text's phonemes."""
        if text not in self._phoneme_cache:
            ipa = "".join("".join(sentence) for sentence in self._phonemizer.phonemize("en-us", text)) if text else ""
            self._phoneme_cache[text] = [PHONEMES.index(c) for c in ipa if c in PHONEMES[1:]]
        return self._phoneme_cache[text]

    def transcribe(self, tokens: Tensor) -> list[int]:
        """Return the most probable words of an encoded clip, as tokens."""
        best = self.word_scores(tokens).argmax(-1).tolist()
        return [token for i, token in enumerate(best) if token != self.blank and (i == 0 or best[i - 1] != token)]


def _symbols_at(times: Tensor, spans: list[tuple[float, float, list[int]]], silence: int) -> Tensor:
    """Return the symbol at each of `times`; the symbols of a span have equal durations."""
    found = torch.full(times.shape, silence)
    for begin, end, symbols in spans:
        inside = (times >= begin) & (times < end)
        if symbols and inside.any():
            place = ((times[inside] - begin) / (end - begin) * len(symbols)).long().clamp(max=len(symbols) - 1)
            found[inside] = torch.tensor(symbols)[place]
    return found


def _ctc(scores: list[Tensor], targets: list[list[int]], blank: int) -> Tensor:
    """Return the mean over clips of the CTC loss a label; clips that are too short for their labels count as 0."""
    losses = F.ctc_loss(
        nn.utils.rnn.pad_sequence(scores),
        torch.tensor([token for row in targets for token in row]),
        torch.tensor([len(row) for row in scores]),
        torch.tensor([len(row) for row in targets]),
        blank=blank,
        reduction="none",
        zero_infinity=True,
    )
    return (losses / torch.tensor([len(row) for row in targets]).clamp(min=1)).mean()
