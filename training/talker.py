"""The talker in training: the sequence that `generate()` would have fed it, with the true codes in place of its own."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeTalkerForConditionalGeneration

from training.dialogues import Writer
from training.model import CODEBOOK, CODEBOOKS, VOICE, make_config
from training.thinker import make_thinker

GUIDED_LAYER = 2  # whose first two heads are taught to look at the word that is spoken, and at the next


@dataclass(frozen=True, slots=True)
class Spoken:
    """A sentence of the barista."""

    text: list[int]  # tokens, the end of the turn included
    codes: Tensor  # [T, books]
    token_of_frame: np.ndarray | None  # [T], which token is spoken


def make_talker(config: Any) -> Qwen3OmniMoeTalkerForConditionalGeneration:
    """A fresh talker with its code predictor."""
    talker_config = config.talker_config
    talker_config.text_config._attn_implementation = "eager"  # its weights are looked at
    talker = Qwen3OmniMoeTalkerForConditionalGeneration._from_config(talker_config, attn_implementation="eager")
    for name, parameter in talker.named_parameters():
        if "experts" in name and parameter.dim() == 3:
            nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
        elif "codec_embedding" in name:
            nn.init.normal_(parameter, std=0.3)
    return talker


class Teacher:
    """Builds inputs and losses of a batch. `embeddings`: the thinker's token embeddings."""

    def __init__(
        self, config: Any, talker: Qwen3OmniMoeTalkerForConditionalGeneration, embeddings: Tensor, opening: list[int]
    ):
        self._config, self._talker, self._embeddings, self._opening = config, talker, embeddings, opening
        codec = config.talker_config
        self._prefix_codes = torch.tensor([
            codec.codec_nothink_id, codec.codec_think_bos_id, codec.codec_think_eos_id, codec.speaker_id[VOICE],
            codec.codec_pad_id, codec.codec_bos_id,
        ])  # fmt: skip

    def sequence(self, spoken: Spoken, heard: Tensor, user: Tensor) -> tuple[Tensor, int]:
        """Inputs [S, hidden] of a sentence after a user's part, and the position that predicts the first frame.

        `heard`: the codes [T, books] that the talker is told it spoke.
        """
        config, talker = self._config, self._talker
        head = self.text([*self._opening, *[config.tts_pad_token_id] * 4, config.tts_bos_token_id, spoken.text[0]])
        codes = talker.get_input_embeddings()(self._prefix_codes)
        head = torch.cat([head[:3], head[3:] + codes])
        trailing = self.trailing(spoken.text)[: len(heard)]
        trailing = torch.cat([trailing, self.pad.expand(len(heard) - len(trailing), -1)])
        return torch.cat([user, head, self.frame_embeddings(heard) + trailing]), len(user) + len(head) - 1

    def trailing(self, text: list[int]) -> Tensor:
        """What goes with the frames, one a frame: the text behind its first token, and its end."""
        return self.text([*text[1:], self._config.tts_eos_token_id])

    @property
    def pad(self) -> Tensor:
        """What goes with a frame when the text is over, [1, hidden]."""
        return self.text([self._config.tts_pad_token_id])

    @property
    def end(self) -> int:
        """The code that ends an answer."""
        return int(self._config.talker_config.codec_eos_token_id)

    def text(self, ids: list[int]) -> Tensor:
        """Projected embeddings of text tokens, [n, hidden]."""
        return self._talker.text_projection(self._embeddings[torch.tensor(ids, dtype=torch.long)])

    def frame_embeddings(self, codes: Tensor) -> Tensor:
        """The sum of a frame's 16 embeddings, [T, hidden]."""
        total = self._talker.get_input_embeddings()(codes[:, 0])
        for book, embedding in enumerate(self._talker.code_predictor.get_input_embeddings(), 1):
            total = total + embedding(codes[:, book])
        return total

    def user_part(self, draw: random.Random) -> Tensor:
        """A user's part of any content: the talker has to speak the same after each."""
        parts = [torch.zeros(0, self._talker.config.text_config.hidden_size)]
        for _ in range(draw.choice((0, 0, 1, 1, 2, 3))):
            tokens = [draw.randrange(len(self._embeddings)) for _ in range(draw.randint(4, 14))]
            parts.append(self.text(tokens))
            if draw.random() < 0.7:
                hidden = torch.randn(draw.randint(6, 40), self._embeddings.shape[1]) * draw.uniform(0.3, 6.0)
                parts.append(self._talker.hidden_projection(hidden))
        return torch.cat(parts).detach()

    def losses(
        self, batch: list[Spoken], draw: random.Random, mistakes: float = 0.06, own: float = 0.0
    ) -> dict[str, Tensor]:
        """Cross entropies of the first codebook and of the others, and the guidance of attention.

        A share of `mistakes` of the frames that the talker is told it spoke have wrong codes, and a share of `own` are
        what it would have spoken there.
        """
        users, heard = [self.user_part(draw) for _ in batch], [_with_mistakes(b.codes, mistakes) for b in batch]
        if own:
            heard = self._with_own(batch, heard, users, own)
        output, starts = self._forward(batch, heard, users)
        end = torch.tensor([self.end])
        hidden = torch.cat(
            [
                output.last_hidden_state[i, s : s + len(b.codes) + 1]
                for i, (b, s) in enumerate(zip(batch, starts, strict=True))
            ]
        )
        wanted = torch.cat([torch.cat([b.codes[:, 0], end]) for b in batch])
        logits = self._talker.codec_head(hidden)
        first = F.cross_entropy(logits, wanted)

        frames = torch.cat(
            [torch.arange(len(b.codes)) + sum(len(c.codes) + 1 for c in batch[:i]) for i, b in enumerate(batch)]
        )
        codes = torch.cat([b.codes for b in batch])
        chosen = torch.randperm(len(frames))[: max(1, len(frames) // 2)]
        return {
            "first": first,
            "right": (logits.argmax(-1) == wanted).float().mean(),
            "others": self._predictor_loss(hidden[frames[chosen]], codes[chosen]),
            "guide": self._guidance(output.attentions[GUIDED_LAYER], batch, starts),
        }

    def _forward(self, batch: list[Spoken], heard: list[Tensor], users: list[Tensor]) -> tuple[Any, list[int]]:
        """The talker's output over a batch, and where each sentence's first frame is predicted."""
        rows, starts = zip(*(self.sequence(*each) for each in zip(batch, heard, users, strict=True)), strict=True)
        inputs = nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
        mask = nn.utils.rnn.pad_sequence([torch.ones(len(row), dtype=torch.long) for row in rows], batch_first=True)
        positions = torch.arange(inputs.shape[1]).expand(3, len(rows), -1)
        output = self._talker.model(
            inputs_embeds=inputs, attention_mask=mask, position_ids=positions, output_attentions=True
        )
        return output, list(starts)

    @torch.no_grad()
    def _with_own(self, batch: list[Spoken], heard: list[Tensor], users: list[Tensor], share: float) -> list[Tensor]:
        """`heard`, where a share of the frames is what the talker would have spoken there, the first code drawn."""
        output, starts = self._forward(batch, heard, users)
        mixed = [codes.clone() for codes in heard]
        for i, (codes, start) in enumerate(zip(mixed, starts, strict=True)):
            chosen = torch.nonzero(torch.rand(len(codes)) < share)[:, 0]
            if len(chosen):
                codes[chosen] = self._speak_frames(output.last_hidden_state[i, start + chosen])
        return mixed

    def _speak_frames(self, hidden: Tensor) -> Tensor:
        """Codes [N, books] from the talker's hidden states [N, hidden]: the first drawn, then the likeliest."""
        predictor = self._talker.code_predictor
        first = torch.multinomial(self._talker.codec_head(hidden)[:, :CODEBOOK].softmax(-1), 1)[:, 0]
        codes, inputs = [first], [hidden, self._talker.get_input_embeddings()(first)]
        for book, head in enumerate(predictor.lm_head):
            output = predictor.model(inputs_embeds=torch.stack(inputs, 1)).last_hidden_state
            codes.append(head(output[:, -1]).argmax(-1))
            if book < len(predictor.lm_head) - 1:
                inputs.append(predictor.get_input_embeddings()[book](codes[-1]))
        return torch.stack(codes, 1)

    def _predictor_loss(self, hidden: Tensor, codes: Tensor) -> Tensor:
        """Cross entropy of codebooks 1 to 15 of frames: hidden [N, hidden], codes [N, books]."""
        predictor = self._talker.code_predictor
        inputs = [hidden, self._talker.get_input_embeddings()(codes[:, 0])]
        inputs += [embed(codes[:, book]) for book, embed in enumerate(predictor.get_input_embeddings()[:-1], 1)]
        output = predictor.model(inputs_embeds=torch.stack(inputs, 1)).last_hidden_state
        logits = torch.stack([head(output[:, book]) for book, head in enumerate(predictor.lm_head, 1)], 1)
        return F.cross_entropy(logits.flatten(0, 1), codes[:, 1:].flatten())

    def _guidance(self, attention: Tensor, batch: list[Spoken], starts: list[int]) -> Tensor:
        """How little two heads look at the token that is spoken and at the next; attention is [B, heads, S, S]."""
        losses = []
        for i, (spoken, start) in enumerate(zip(batch, starts, strict=True)):
            if spoken.token_of_frame is None:
                continue
            frames = torch.arange(len(spoken.codes))
            for head, ahead in ((0, 0), (1, 1)):
                token = torch.from_numpy(spoken.token_of_frame).long()[: len(frames)] + ahead
                token = torch.minimum(token.clamp(max=len(spoken.text)), frames)  # not yet read: the newest there is
                weight = attention[i, head][start + frames, start + token]
                losses.append(-(weight + 1e-4).log().mean())
        return torch.stack(losses).mean() if losses else attention.new_zeros(())


def _with_mistakes(codes: Tensor, share: float) -> Tensor:
    """Codes [T, books] of which a share is wrong, in half of the frames."""
    heard = codes.clone()
    wrong = torch.rand(len(heard), CODEBOOKS) < share * (torch.rand(len(heard), 1) < 0.5) * 2
    heard[wrong] = torch.randint(CODEBOOK, (int(wrong.sum()),))
    return heard


def make_teacher(tokenizer: PreTrainedTokenizerFast, talker: Qwen3OmniMoeTalkerForConditionalGeneration) -> Teacher:
    """For a talker that follows a thinker of `make_thinker`."""
    embeddings = make_thinker(tokenizer).get_input_embeddings().weight.detach()
    return Teacher(make_config(tokenizer), talker, embeddings, Writer(tokenizer).encode("<|im_start|>assistant\n"))
