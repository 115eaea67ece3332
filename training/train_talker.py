"""Trains the talker and its code predictor on the codes of the barista's sentences, as the codec gives them."""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from config.settings import CODEC_FRAME_MS
from training.alignment import token_starts
from training.clips import Clip, Shards
from training.codec import Codec, load_codec
from training.dialogues import Writer
from training.model import load_tokenizer, make_config
from training.run import Run
from training.talker import Spoken, make_talker, make_teacher


def spoken(clip: Clip, codec: Codec, writer: Writer, tokenizer: PreTrainedTokenizerFast) -> Spoken:
    """A sentence as codes; its clip (24 kHz) is as many whole frames long, and its words begin where frames do."""
    codes = codec.codes(torch.from_numpy(clip.samples.astype(np.float32) / 32768))
    text, of_frame = clip.about["text"], None
    if "starts" in clip.about:
        starts = token_starts(text, clip.about["starts"], tokenizer)
        centres = (np.arange(len(codes)) + 0.5) * CODEC_FRAME_MS / 1000
        of_frame = np.searchsorted(starts, centres, side="right").clip(1) - 1
    return Spoken([*writer.encode(text), *writer.encode("<|im_end|>")], codes, of_frame)


def main() -> None:
    """The program; see the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, help="folder with clips/ and codec.pt, to save to and to go on from")
    parser.add_argument("--steps", type=int, default=6800)
    parser.add_argument("--batch", type=int, default=8, help="sentences")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--mistakes", type=float, default=0.06, help="share of frames heard with wrong codes")
    parser.add_argument("--own", type=float, default=0.0, help="share of frames heard as the talker itself speaks them")
    args = parser.parse_args()
    torch.manual_seed(1)
    tokenizer, codec = load_tokenizer(args.work), load_codec(args.work)
    writer, talker = Writer(tokenizer), make_talker(make_config(tokenizer))
    teacher = make_teacher(tokenizer, talker)
    run = Run(args.work / "talker.pt", talker.parameters(), args.steps, args.rate, talker=talker)
    shards, sentences = Shards(args.work / "clips", "barista"), []
    for step in run:
        sentences += [spoken(clip, codec, writer, tokenizer) for clip in shards.refresh()]
        draw = random.Random(f"talker {step}")
        batch = draw.sample(sentences, args.batch)
        losses = teacher.losses(batch, draw, args.mistakes, args.own)
        run.learn(losses["first"] + losses["others"] + 0.3 * losses["guide"], **losses, sentences=len(sentences))


if __name__ == "__main__":
    main()
