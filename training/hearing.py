"""The audio encoder in training: features as the official extractor makes them, and CTC on what was said.

Two classifiers: words, as the tokenizer spells them, with the thinker's token embeddings as their directions; and
phonemes, two steps an audio token, from the encoder's last hidden state, which only the training has.
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
TOKEN_S = CODEC_FRAME_MS / 1000  # of an audio token
MEL_PER_SECOND = INPUT_HZ // MEL_HOP


def masked(draw: random.Random, mel: Tensor, strength: float = 1.0) -> Tensor:
    """SpecAugment: bands and stretches of a log-mel [128, T] are set to its mean."""
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
    """A word of a clip and when it is spoken."""

    word: str
    tokens: list[int]
    begin_s: float
    end_s: float


class Ears(nn.Module):
    """The encoder with the two classifiers of its training."""

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
        self._spelled: dict[str, list[int]] = {}

    def mel(self, samples: np.ndarray) -> Tensor:
        """Log-mel [128, T] of a clip, float32 at 16 kHz, by the official extractor."""
        features = self._extractor(samples, sampling_rate=INPUT_HZ, padding="do_not_pad", return_tensors="pt")
        return features["input_features"][0]

    def count(self, mel: Tensor) -> int:
        """Audio tokens of a log-mel [128, T]."""
        return self._shape.tokens(mel.shape[1])

    def forward(self, mels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Audio tokens' embeddings [n, hidden] and last hidden states [n, d_model] of each log-mel [128, T]."""
        lengths = torch.tensor([mel.shape[1] for mel in mels])
        self._hidden.clear()
        tokens = self.encoder(torch.cat(mels, dim=1), feature_lens=lengths).last_hidden_state
        counts = [self.count(mel) for mel in mels]
        return list(tokens.split(counts)), list(self._hidden.pop().split(counts))

    def word_scores(self, tokens: Tensor) -> Tensor:
        """Log probabilities [..., vocabulary] of audio tokens' embeddings."""
        return F.log_softmax(tokens @ self.embeddings.T * self.scale + self.bias, -1)

    def frame_loss(self, tokens: list[Tensor], hidden: list[Tensor], aligned: list[list[Span] | None]) -> Tensor:
        """Cross entropy of the word and of the phoneme that is spoken at each step, where the words' times are known.

        It teaches at once what CTC alone takes long to begin with. A word's phonemes share its time evenly.
        """
        words, phonemes, word_wanted, phoneme_wanted = [], [], [], []
        for token, last, spans in zip(tokens, hidden, aligned, strict=True):
            if spans is None:
                continue
            centres = self._centres_s(len(token))
            halves = torch.stack([centres - TOKEN_S / 4, centres + TOKEN_S / 4], 1).flatten()
            words.append(token)
            word_wanted.append(_spoken_at(centres, [(s.begin_s, s.end_s, s.tokens) for s in spans], self.blank))
            phonemes.append(self.phonemes(last).reshape(-1, len(PHONEMES)))
            phoneme_wanted.append(_spoken_at(halves, [(s.begin_s, s.end_s, self.spell(s.word)) for s in spans], 0))
        if not words:
            return tokens[0].new_zeros(())
        word_loss = F.nll_loss(self.word_scores(torch.cat(words)), torch.cat(word_wanted))
        return word_loss + F.cross_entropy(torch.cat(phonemes), torch.cat(phoneme_wanted))

    def _centres_s(self, count: int) -> Tensor:
        """When each of a clip's audio tokens is, in seconds: every block of the encoder begins anew."""
        block, index = torch.arange(count) // self._shape.block_tokens, torch.arange(count) % self._shape.block_tokens
        return block * self._shape.block / MEL_PER_SECOND + (index + 0.5) * TOKEN_S

    def loss(self, tokens: list[Tensor], hidden: list[Tensor], spoken: list[list[int]], texts: list[str]) -> Tensor:
        """CTC of words and of phonemes, a step of each on average."""
        words = _ctc([self.word_scores(t) for t in tokens], spoken, self.blank)
        shape = (-1, len(PHONEMES))
        scores = [F.log_softmax(self.phonemes(h).reshape(shape), -1) for h in hidden]
        return words + 0.5 * _ctc(scores, [self.spell(text) for text in texts], 0)

    def spell(self, text: str) -> list[int]:
        """Phonemes of a text, as numbers."""
        if text not in self._spelled:
            ipa = "".join("".join(sentence) for sentence in self._phonemizer.phonemize("en-us", text)) if text else ""
            self._spelled[text] = [PHONEMES.index(c) for c in ipa if c in PHONEMES[1:]]
        return self._spelled[text]

    def transcribe(self, tokens: Tensor) -> list[int]:
        """The likeliest words of an encoded clip, as tokens."""
        best = self.word_scores(tokens).argmax(-1).tolist()
        return [token for i, token in enumerate(best) if token != self.blank and (i == 0 or best[i - 1] != token)]


def _spoken_at(times: Tensor, spans: list[tuple[float, float, list[int]]], silence: int) -> Tensor:
    """The symbol at each of `times`, of spans that share their time evenly among their symbols."""
    wanted = torch.full(times.shape, silence)
    for begin, end, symbols in spans:
        inside = (times >= begin) & (times < end)
        if symbols and inside.any():
            place = ((times[inside] - begin) / (end - begin) * len(symbols)).long().clamp(max=len(symbols) - 1)
            wanted[inside] = torch.tensor(symbols)[place]
    return wanted


def _ctc(scores: list[Tensor], wanted: list[list[int]], blank: int) -> Tensor:
    """Mean over clips of the CTC loss an output step; clips whose labels do not fit are left out."""
    losses = F.ctc_loss(
        nn.utils.rnn.pad_sequence(scores),
        torch.tensor([token for row in wanted for token in row]),
        torch.tensor([len(row) for row in scores]),
        torch.tensor([len(row) for row in wanted]),
        blank=blank,
        reduction="none",
        zero_infinity=True,
    )
    return (losses / torch.tensor([len(row) for row in wanted]).clamp(min=1)).mean()
