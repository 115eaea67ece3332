"""The talker in training: teacher forcing on the input sequence of `generate()`, with the true codes."""

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

GUIDED_LAYER = 2  # layer whose first two heads are trained to attend to the current and to the next token


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence of the barista."""

    text: list[int]  # tokens, including the end of the turn
    codes: Tensor  # [T, books]
    token_of_frame: np.ndarray | None  # [T], index of the token spoken in each frame


def make_talker(config: Any) -> Qwen3OmniMoeTalkerForConditionalGeneration:
    """Create an untrained talker with its code predictor."""
    talker_config = config.talker_config
    talker_config.text_config._attn_implementation = "eager"  # the attention weights are needed for the guidance
    talker = Qwen3OmniMoeTalkerForConditionalGeneration._from_config(talker_config, attn_implementation="eager")
    for name, parameter in talker.named_parameters():
        if "experts" in name and parameter.dim() == 3:
            nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
        elif "codec_embedding" in name:
            nn.init.normal_(parameter, std=0.3)
    return talker


class Teacher:
    """Inputs and losses of a batch. `embeddings`: the thinker's token embeddings."""

    def __init__(
        self, config: Any, talker: Qwen3OmniMoeTalkerForConditionalGeneration, embeddings: Tensor, opening: list[int]
    ):
        self._config, self._talker, self._embeddings, self._opening = config, talker, embeddings, opening
        codec = config.talker_config
        self._prefix_codes = torch.tensor([
            codec.codec_nothink_id, codec.codec_think_bos_id, codec.codec_think_eos_id, codec.speaker_id[VOICE],
            codec.codec_pad_id, codec.codec_bos_id,
        ])  # fmt: skip

    def sequence(self, sentence: Sentence, codes: Tensor, user: Tensor) -> tuple[Tensor, int]:
        """Return inputs [S, hidden] of a sentence after a user's turns, and the position that predicts the first frame.

        `codes`: the input codes [T, books].
        """
        config, talker = self._config, self._talker
        head = self.text([*self._opening, *[config.tts_pad_token_id] * 4, config.tts_bos_token_id, sentence.text[0]])
        prefix = talker.get_input_embeddings()(self._prefix_codes)
        head = torch.cat([head[:3], head[3:] + prefix])
        trailing = self.trailing(sentence.text)[: len(codes)]
        trailing = torch.cat([trailing, self.pad.expand(len(codes) - len(trailing), -1)])
        return torch.cat([user, head, self.frame_embeddings(codes) + trailing]), len(user) + len(head) - 1

    def trailing(self, text: list[int]) -> Tensor:
        """Return the text inputs of the frames, one a frame: the text after its first token, and its end."""
        return self.text([*text[1:], self._config.tts_eos_token_id])

    @property
    def pad(self) -> Tensor:
        """The text input of a frame after the end of the text, [1, hidden]."""
        return self.text([self._config.tts_pad_token_id])

    @property
    def end(self) -> int:
        """The code that ends an answer."""
        return int(self._config.talker_config.codec_eos_token_id)

    def text(self, ids: list[int]) -> Tensor:
        """Return projected embeddings of text tokens, [n, hidden]."""
        return self._talker.text_projection(self._embeddings[torch.tensor(ids, dtype=torch.long)])

    def frame_embeddings(self, codes: Tensor) -> Tensor:
        """Sum the 16 embeddings of each frame, [T, hidden]."""
        total = self._talker.get_input_embeddings()(codes[:, 0])
        for book, embedding in enumerate(self._talker.code_predictor.get_input_embeddings(), 1):
            total = total + embedding(codes[:, book])
        return total

    def user_part(self, draw: random.Random) -> Tensor:
        """Return random user turns: the talker's output must not depend on them."""
        parts = [torch.zeros(0, self._talker.config.text_config.hidden_size)]
        for _ in range(draw.choice((0, 0, 1, 1, 2, 3))):
            tokens = [draw.randrange(len(self._embeddings)) for _ in range(draw.randint(4, 14))]
            parts.append(self.text(tokens))
            if draw.random() < 0.7:
                hidden = torch.randn(draw.randint(6, 40), self._embeddings.shape[1]) * draw.uniform(0.3, 6.0)
                parts.append(self._talker.hidden_projection(hidden))
        return torch.cat(parts).detach()

    def losses(
        self, batch: list[Sentence], draw: random.Random, mistakes: float = 0.06, own: float = 0.0
    ) -> dict[str, Tensor]:
        """Return the cross entropies of the first codebook and of the others, and the loss of guided attention.

        In the input, a share of `mistakes` of the frames have wrong codes, and a share of `own` have the codes that the
        talker predicts.
        """
        users, inputs = [self.user_part(draw) for _ in batch], [_with_mistakes(b.codes, mistakes) for b in batch]
        if own:
            inputs = self._with_own(batch, inputs, users, own)
        output, starts = self._forward(batch, inputs, users)
        end = torch.tensor([self.end])
        hidden = torch.cat(
            [
                output.last_hidden_state[i, s : s + len(b.codes) + 1]
                for i, (b, s) in enumerate(zip(batch, starts, strict=True))
            ]
        )
        target = torch.cat([torch.cat([b.codes[:, 0], end]) for b in batch])
        logits = self._talker.codec_head(hidden)
        first = F.cross_entropy(logits, target)

        frames = torch.cat(
            [torch.arange(len(b.codes)) + sum(len(c.codes) + 1 for c in batch[:i]) for i, b in enumerate(batch)]
        )
        codes = torch.cat([b.codes for b in batch])
        chosen = torch.randperm(len(frames))[: max(1, len(frames) // 2)]
        return {
            "first": first,
            "accuracy": (logits.argmax(-1) == target).float().mean(),
            "others": self._predictor_loss(hidden[frames[chosen]], codes[chosen]),
            "guide": self._guidance(output.attentions[GUIDED_LAYER], batch, starts),
        }

    def _forward(self, batch: list[Sentence], codes: list[Tensor], users: list[Tensor]) -> tuple[Any, list[int]]:
        """Return the talker's output for a batch, and the position that predicts each sentence's first frame."""
        rows, starts = zip(*(self.sequence(*each) for each in zip(batch, codes, users, strict=True)), strict=True)
        inputs = nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
        mask = nn.utils.rnn.pad_sequence([torch.ones(len(row), dtype=torch.long) for row in rows], batch_first=True)
        positions = torch.arange(inputs.shape[1]).expand(3, len(rows), -1)
        output = self._talker.model(
            inputs_embeds=inputs, attention_mask=mask, position_ids=positions, output_attentions=True
        )
        return output, list(starts)

    @torch.no_grad()
    def _with_own(self, batch: list[Sentence], inputs: list[Tensor], users: list[Tensor], share: float) -> list[Tensor]:
        """Replace a share of the frames in `inputs` by the talker's prediction, with a sampled first code."""
        output, starts = self._forward(batch, inputs, users)
        mixed = [codes.clone() for codes in inputs]
        for i, (codes, start) in enumerate(zip(mixed, starts, strict=True)):
            chosen = torch.nonzero(torch.rand(len(codes)) < share)[:, 0]
            if len(chosen):
                codes[chosen] = self._predict_frames(output.last_hidden_state[i, start + chosen])
        return mixed

    def _predict_frames(self, hidden: Tensor) -> Tensor:
        """Return codes [N, books] for hidden states [N, hidden]: the first sampled, the others most probable."""
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
        """Return the cross entropy of codebooks 1 to 15 of frames: hidden [N, hidden], codes [N, books]."""
        predictor = self._talker.code_predictor
        inputs = [hidden, self._talker.get_input_embeddings()(codes[:, 0])]
        inputs += [embed(codes[:, book]) for book, embed in enumerate(predictor.get_input_embeddings()[:-1], 1)]
        output = predictor.model(inputs_embeds=torch.stack(inputs, 1)).last_hidden_state
        logits = torch.stack([head(output[:, book]) for book, head in enumerate(predictor.lm_head, 1)], 1)
        return F.cross_entropy(logits.flatten(0, 1), codes[:, 1:].flatten())

    def _guidance(self, attention: Tensor, batch: list[Sentence], starts: list[int]) -> Tensor:
        """Return the negative log attention [B, heads, S, S] of two heads to the current and to the next token."""
        losses = []
        for i, (sentence, start) in enumerate(zip(batch, starts, strict=True)):
            if sentence.token_of_frame is None:
                continue
            frames = torch.arange(len(sentence.codes))
            for head, ahead in ((0, 0), (1, 1)):
                token = torch.from_numpy(sentence.token_of_frame).long()[: len(frames)] + ahead
                token = torch.minimum(token.clamp(max=len(sentence.text)), frames)  # at most the newest input token
                weight = attention[i, head][start + frames, start + token]
                losses.append(-(weight + 1e-4).log().mean())
        return torch.stack(losses).mean() if losses else attention.new_zeros(())


def _with_mistakes(codes: Tensor, share: float) -> Tensor:
    """Return codes [T, books] of which a share is random, in half of the frames."""
    changed = codes.clone()
    wrong = torch.rand(len(changed), CODEBOOKS) < share * (torch.rand(len(changed), 1) < 0.5) * 2
    changed[wrong] = torch.randint(CODEBOOK, (int(wrong.sum()),))
    return changed


def make_teacher(tokenizer: PreTrainedTokenizerFast, talker: Qwen3OmniMoeTalkerForConditionalGeneration) -> Teacher:
    """Return the teacher of a talker whose thinker is `make_thinker`'s."""
    embeddings = make_thinker(tokenizer).get_input_embeddings().weight.detach()
    return Teacher(make_config(tokenizer), talker, embeddings, Writer(tokenizer).encode("<|im_start|>assistant\n"))
