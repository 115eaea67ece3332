"""Trains the talker and its code predictor on the codes of the barista's sentences, as the codec gives them."""

from __future__ import annotations

import argparse
import random
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from training import codec
from training.alignment import Aligner
from training.clips import read_clips
from training.dialogues import Writer
from training.model import CODEBOOK, CODEBOOKS, CODEC, load_tokenizer, make_config
from training.state import load, save
from training.talker import Spoken, Teacher, make_talker
from training.thinker import make_thinker

LEAD_S = (0.02, 0.2)  # silence before a sentence: at another phase of the frames it has other codes
FRAMES_PER_SECOND = 12.5


@dataclass(frozen=True, slots=True)
class Sentence:
    """The barista's voice (int16, 24 kHz), its text as tokens, and when each of them begins, in seconds."""

    samples: np.ndarray
    text: list[int]
    token_starts: np.ndarray | None


@torch.no_grad()
def spoken(
    draw: random.Random, sentence: Sentence, encoder: codec.Encoder, quantizer: codec.ResidualQuantizer
) -> Spoken:
    """A sentence as codes, at a random phase and loudness."""
    lead_s = draw.uniform(*LEAD_S)
    samples = torch.from_numpy(sentence.samples.astype(np.float32) / 32768) * 10 ** (draw.uniform(-1, 1) / 20)
    lead = int(lead_s * codec.RATE)
    samples = nn.functional.pad(samples, (lead, (-len(samples) - lead) % codec.FRAME))
    codes = quantizer.encode(encoder(samples[None]))[0]
    if sentence.token_starts is None:
        return Spoken(sentence.text, codes, None)
    centres = (np.arange(len(codes)) + 0.5) / FRAMES_PER_SECOND - lead_s
    tokens = np.searchsorted(sentence.token_starts, centres, side="right").clip(1) - 1
    return Spoken(sentence.text, codes, tokens)


def main() -> None:
    """The program; see the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, help="folder with clips/ and codec.pt, to save to and to go on from")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=8, help="sentences")
    parser.add_argument("--rate", type=float, default=2e-3)
    args = parser.parse_args()
    torch.manual_seed(1)
    tokenizer, path = load_tokenizer(args.work), args.work / "talker.pt"
    config, writer, aligner = make_config(tokenizer), Writer(tokenizer), Aligner(tokenizer)
    embeddings = make_thinker(tokenizer).get_input_embeddings().weight.detach()
    talker = make_talker(config)
    teacher = Teacher(config, talker, embeddings, writer.encode("<|im_start|>assistant\n"))
    state = torch.load(args.work / "codec.pt", weights_only=False)
    encoder, quantizer = codec.Encoder(CODEC), codec.ResidualQuantizer(CODEBOOKS, CODEBOOK, CODEC)
    encoder.load_state_dict(state["encoder"]), quantizer.load_state_dict(state["quantizer"])
    encoder.eval(), quantizer.eval()

    optimizer = torch.optim.AdamW(talker.parameters(), args.rate, betas=(0.9, 0.98), weight_decay=0.02)
    step = load(path, optimizer, talker=talker)
    seen: set[str] = set()
    sentences: list[Sentence] = []

    def read() -> None:
        for clip in read_clips(args.work / "clips", "barista", seen):
            text = [*writer.encode(clip.about["text"]), *writer.encode("<|im_end|>")]
            sentences.append(Sentence(clip.samples, text, aligner.token_starts(clip.samples, clip.about["text"])))

    read_at = saved_at = time.monotonic()
    bar = tqdm(total=args.steps, initial=step, mininterval=10)
    while step < args.steps:
        if not sentences or time.monotonic() - read_at > 300:
            read()
            read_at = time.monotonic()
            tqdm.write(f"{len(sentences)} sentences, {sum(s.token_starts is not None for s in sentences)} aligned")
        draw = random.Random(f"talker {step}")
        for group in optimizer.param_groups:
            group["lr"] = args.rate * min(1.0, (step + 1) / 200) * 0.05 ** (step / args.steps)
        batch = [spoken(draw, sentence, encoder, quantizer) for sentence in draw.sample(sentences, args.batch)]
        losses = teacher.losses(batch, draw)
        (losses["first"] + losses["others"] + 0.3 * losses["guide"]).backward()
        nn.utils.clip_grad_norm_(talker.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        bar.update()
        bar.set_postfix({name: f"{float(loss):.3f}" for name, loss in losses.items()})
        if time.monotonic() - saved_at > 120 or step == args.steps:
            save(path, step, optimizer, talker=talker)
            saved_at = time.monotonic()


if __name__ == "__main__":
    main()
