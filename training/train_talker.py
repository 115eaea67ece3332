"""Trains the talker and its code predictor on the codes of the barista's sentences, as the codec gives them."""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from config.settings import CODEC_FRAME_MS, OUTPUT_HZ
from training.alignment import Aligner
from training.clips import Shards
from training.codec import Codec, load_codec
from training.dialogues import Writer
from training.model import load_tokenizer, make_config
from training.run import Run
from training.talker import Spoken, make_talker, make_teacher

LEAD_S = (0.02, 0.2)  # silence before a sentence: at another phase of the frames it has other codes


@dataclass(frozen=True, slots=True)
class Sentence:
    """The barista's voice (int16, 24 kHz), its text as tokens, and when each of them begins, in seconds."""

    samples: np.ndarray
    text: list[int]
    token_starts: np.ndarray | None


def spoken(draw: random.Random, sentence: Sentence, codec: Codec) -> Spoken:
    """A sentence as codes, at a random phase and loudness."""
    lead_s = draw.uniform(*LEAD_S)
    samples = torch.from_numpy(sentence.samples.astype(np.float32) / 32768) * 10 ** (draw.uniform(-1, 1) / 20)
    codes = codec.codes(nn.functional.pad(samples, (int(lead_s * OUTPUT_HZ), 0)))
    if sentence.token_starts is None:
        return Spoken(sentence.text, codes, None)
    centres = (np.arange(len(codes)) + 0.5) * CODEC_FRAME_MS / 1000 - lead_s
    tokens = np.searchsorted(sentence.token_starts, centres, side="right").clip(1) - 1
    return Spoken(sentence.text, codes, tokens)


def main() -> None:
    """The program; see the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, help="folder with clips/ and codec.pt, to save to and to go on from")
    parser.add_argument("--steps", type=int, default=6800)
    parser.add_argument("--batch", type=int, default=8, help="sentences")
    parser.add_argument("--rate", type=float, default=2e-3)
    args = parser.parse_args()
    torch.manual_seed(1)
    tokenizer, codec, aligner = load_tokenizer(args.work), load_codec(args.work), Aligner()
    writer, talker = Writer(tokenizer), make_talker(make_config(tokenizer))
    teacher = make_teacher(tokenizer, talker)
    run = Run(args.work / "talker.pt", talker.parameters(), args.steps, args.rate, talker=talker)
    shards, sentences = Shards(args.work / "clips", "barista"), []
    for step in run:
        for clip in shards.refresh():
            text = [*writer.encode(clip.about["text"]), *writer.encode("<|im_end|>")]
            starts = aligner.token_starts(clip.samples, clip.about["text"], tokenizer)
            sentences.append(Sentence(clip.samples, text, starts))
        draw = random.Random(f"talker {step}")
        batch = [spoken(draw, sentence, codec) for sentence in draw.sample(sentences, args.batch)]
        losses = teacher.losses(batch, draw)
        run.learn(losses["first"] + losses["others"] + 0.3 * losses["guide"], **losses, sentences=len(sentences))


if __name__ == "__main__":
    main()
