"""Trains the talker and its code predictor on the codec's codes of the barista's sentences."""

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
from training.talker import Sentence, make_talker, make_teacher


def encode_sentence(clip: Clip, codec: Codec, writer: Writer, tokenizer: PreTrainedTokenizerFast) -> Sentence:
    """Encode a sentence; its clip (24 kHz) has a whole number of frames, and its words begin at frames."""
    codes = codec.codes(torch.from_numpy(clip.samples.astype(np.float32) / 32768))
    text, token_of_frame = clip.about["text"], None
    if "starts" in clip.about:
        starts = token_starts(text, clip.about["starts"], tokenizer)
        centres = (np.arange(len(codes)) + 0.5) * CODEC_FRAME_MS / 1000
        token_of_frame = np.searchsorted(starts, centres, side="right").clip(1) - 1
    return Sentence([*writer.encode(text), *writer.encode("<|im_end|>")], codes, token_of_frame)


def main() -> None:
    """Run the program that the module describes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, help="folder with clips/ and codec.pt, where the state is saved")
    parser.add_argument("--steps", type=int, default=6800)
    parser.add_argument("--batch", type=int, default=8, help="sentences in a batch")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--mistakes", type=float, default=0.06, help="share of input frames with wrong codes")
    parser.add_argument("--own", type=float, default=0.0, help="share of input frames with predicted codes")
    args = parser.parse_args()
    torch.manual_seed(1)
    tokenizer, codec = load_tokenizer(args.work), load_codec(args.work)
    writer, talker = Writer(tokenizer), make_talker(make_config(tokenizer))
    teacher = make_teacher(tokenizer, talker)
    run = Run(args.work / "talker.pt", talker.parameters(), args.steps, args.rate, talker=talker)
    shards = Shards(args.work / "clips", "barista")
    sentences: list[Sentence] = []
    for step in run:
        sentences += [encode_sentence(clip, codec, writer, tokenizer) for clip in shards.refresh()]
        draw = random.Random(f"talker {step}")
        batch = draw.sample(sentences, args.batch)
        losses = teacher.losses(batch, draw, args.mistakes, args.own)
        run.learn(losses["first"] + losses["others"] + 0.3 * losses["guide"], **losses, sentences=len(sentences))


if __name__ == "__main__":
    main()
