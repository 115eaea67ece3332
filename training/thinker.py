"""The thinker in training: its text decoder reads text and audio tokens, its encoder is transformers' own.

Token embeddings are random and fixed, so that the talker, which also reads them, can be trained at the same time. The
encoder is trained by CTC with these embeddings as classifier (blank is <|audio_pad|>): its output for a spoken word is
close to the word's embedding, and a decoder trained on typed words can read spoken ones.
"""

from __future__ import annotations

import random

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import PreTrainedTokenizerFast
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeThinkerForConditionalGeneration

from training.dialogues import Dialogue, Writer, place_audio
from training.model import make_config

EMBEDDING_SEED = 7
AVERAGE_DECAY = 0.999  # averaged weights (about 1,000 steps) make fewer errors than those of the last step


def make_thinker(tokenizer: PreTrainedTokenizerFast) -> Qwen3OmniMoeThinkerForConditionalGeneration:
    """Create an untrained thinker with its fixed token embeddings."""
    thinker = Qwen3OmniMoeThinkerForConditionalGeneration._from_config(make_config(tokenizer).thinker_config)
    generator = torch.Generator().manual_seed(EMBEDDING_SEED)
    embeddings = thinker.get_input_embeddings().weight
    embeddings.data = torch.randn(embeddings.shape, generator=generator)
    embeddings.requires_grad = False
    for name, parameter in thinker.named_parameters():
        if "experts" in name and parameter.dim() == 3:
            nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
        elif name.startswith("audio_tower.") and parameter.dim() > 1:  # scale of the position embeddings
            gain = 2.0 if "conv" in name else 1.0
            nn.init.normal_(parameter, std=(gain / parameter[0].numel()) ** 0.5)
    return thinker


def averaged(thinker: nn.Module) -> AveragedModel:
    """Return a copy of `thinker` with averaged weights, to be updated after every step."""
    return AveragedModel(thinker, multi_avg_fn=get_ema_multi_avg_fn(AVERAGE_DECAY))


def simulate_encoder(tokens: list[int], embeddings: Tensor, blank: int, draw: random.Random) -> Tensor:
    """Simulate an encoder's output [T, hidden] for spoken tokens: their embeddings between blanks, with noise."""
    ids = [blank] * draw.randint(2, 8)
    for token in tokens:
        ids += [token] * draw.choice((1, 1, 1, 2)) + [blank] * draw.randint(0, 5)
    ids += [blank] * draw.randint(2, 8)
    clean = embeddings[torch.tensor(ids)]
    return clean * draw.uniform(0.6, 1.3) + torch.randn_like(clean) * draw.uniform(0.1, 0.7)


def simulate_audio(
    writer: Writer, embeddings: Tensor, dialogues: list[Dialogue], draw: random.Random
) -> list[list[Tensor]]:
    """Simulate the encoder's output for dialogues whose audio is utterances."""
    return [
        [
            simulate_encoder(writer.encode_speech(utterance.text), embeddings, writer.audio_id, draw)
            for _, utterance in dialogue.audio
        ]
        for dialogue in dialogues
    ]


def answer_loss(
    thinker: Qwen3OmniMoeThinkerForConditionalGeneration,
    writer: Writer,
    dialogues: list[Dialogue],
    audio: list[list[Tensor]],
) -> tuple[Tensor, float]:
    """Return the cross entropy of the answers' tokens, and the accuracy of their prediction."""
    placed = [
        place_audio(dialogue, [len(each) for each in encoded], writer.audio_id)
        for dialogue, encoded in zip(dialogues, audio, strict=True)
    ]
    length = max(len(ids) for ids, _, _ in placed)

    def padded(rows: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.stack([np.pad(row, (0, length - len(row))) for row in rows]))

    ids, predicted, is_audio = (padded([row[i] for row in placed]) for i in range(3))
    mask = padded([np.ones(len(row[0]), np.int64) for row in placed])
    embeds = thinker.get_input_embeddings()(ids)
    flat = [each for encoded in audio for each in encoded]
    if flat:
        embeds = embeds.masked_scatter(is_audio.unsqueeze(-1), torch.cat(flat))
    positions = torch.arange(length).expand(3, len(ids), -1)
    hidden = thinker.model(inputs_embeds=embeds, attention_mask=mask, position_ids=positions).last_hidden_state
    chosen = predicted[:, 1:]
    logits = thinker.lm_head(hidden[:, :-1][chosen])
    targets = ids[:, 1:][chosen]
    return F.cross_entropy(logits, targets), float((logits.argmax(-1) == targets).float().mean())
