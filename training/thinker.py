"""The thinker in training: its text half reads tokens and sounds in one sequence, its encoder is transformers' own.

The embeddings of the tokens are random and stay as they are, so that the talker, which reads them, can be trained at
the same time. The encoder is taught by CTC whose classifier is those same embeddings (blank is <|audio_pad|>): what it
gives for a spoken word is near the embedding of that word, and a text half that reads typed words reads spoken ones.
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

from training.dialogues import Dialogue, Writer, place_sounds
from training.model import make_config

EMBEDDING_SEED = 7
AVERAGE = 0.999  # how slowly the kept weights follow: the mean of about 1,000 steps errs less than the last step


def make_thinker(tokenizer: PreTrainedTokenizerFast) -> Qwen3OmniMoeThinkerForConditionalGeneration:
    """A fresh thinker with its fixed token embeddings."""
    thinker = Qwen3OmniMoeThinkerForConditionalGeneration._from_config(make_config(tokenizer).thinker_config)
    generator = torch.Generator().manual_seed(EMBEDDING_SEED)
    embeddings = thinker.get_input_embeddings().weight
    embeddings.data = torch.randn(embeddings.shape, generator=generator)
    embeddings.requires_grad = False
    for name, parameter in thinker.named_parameters():
        if "experts" in name and parameter.dim() == 3:
            nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
        elif name.startswith("audio_tower.") and parameter.dim() > 1:  # sound must be as loud as the positions
            gain = 2.0 if "conv" in name else 1.0
            nn.init.normal_(parameter, std=(gain / parameter[0].numel()) ** 0.5)
    return thinker


def averaged(thinker: nn.Module) -> AveragedModel:
    """A thinker of its own whose weights follow those of `thinker`, to be updated after every step."""
    return AveragedModel(thinker, multi_avg_fn=get_ema_multi_avg_fn(AVERAGE))


def stand_in(said: list[int], embeddings: Tensor, audio: int, draw: random.Random) -> Tensor:
    """What a perfect encoder would give for spoken tokens: their embeddings between blanks, with noise. [T, hidden]"""
    ids = [audio] * draw.randint(2, 8)
    for token in said:
        ids += [token] * draw.choice((1, 1, 1, 2)) + [audio] * draw.randint(0, 5)
    ids += [audio] * draw.randint(2, 8)
    heard = embeddings[torch.tensor(ids)]
    return heard * draw.uniform(0.6, 1.3) + torch.randn_like(heard) * draw.uniform(0.1, 0.7)


def stand_ins(writer: Writer, embeddings: Tensor, dialogues: list[Dialogue], draw: random.Random) -> list[list[Tensor]]:
    """A stand-in for every sound of dialogues whose sounds are utterances."""
    return [
        [stand_in(writer.spoken(said.text), embeddings, writer.audio, draw) for _, said in dialogue.sounds]
        for dialogue in dialogues
    ]


def answer_loss(
    thinker: Qwen3OmniMoeThinkerForConditionalGeneration,
    writer: Writer,
    dialogues: list[Dialogue],
    heard: list[list[Tensor]],
) -> tuple[Tensor, float]:
    """Cross entropy of the answers' tokens, and the share of answers' tokens that are predicted right."""
    placed = [
        place_sounds(d, [len(h) for h in sounds], writer.audio) for d, sounds in zip(dialogues, heard, strict=True)
    ]
    longest = max(len(ids) for ids, _, _ in placed)

    def padded(rows: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.stack([np.pad(row, (0, longest - len(row))) for row in rows]))

    ids, predicted, is_audio = (padded([row[i] for row in placed]) for i in range(3))
    mask = padded([np.ones(len(row[0]), np.int64) for row in placed])
    embeds = thinker.get_input_embeddings()(ids)
    flat = [sound for sounds in heard for sound in sounds]
    if flat:
        embeds = embeds.masked_scatter(is_audio.unsqueeze(-1), torch.cat(flat))
    positions = torch.arange(longest).expand(3, len(ids), -1)
    hidden = thinker.model(inputs_embeds=embeds, attention_mask=mask, position_ids=positions).last_hidden_state
    chosen = predicted[:, 1:]
    logits = thinker.lm_head(hidden[:, :-1][chosen])
    wanted = ids[:, 1:][chosen]
    return F.cross_entropy(logits, wanted), float((logits.argmax(-1) == wanted).float().mean())
