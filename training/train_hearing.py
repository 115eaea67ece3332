"""Trains the audio encoder by CTC on synthetic speakers and on the real recordings."""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from training.augment import augmented, noise
from training.clips import Clip, read_clips
from training.dialogues import Writer
from training.hearing import Ears, Span, masked
from training.model import load_tokenizer
from training.recordings import RATE, read_recordings, split_strangers
from training.state import load, save
from training.thinker import make_thinker

WHOLE = 0.4  # share of recordings that are heard with all the silence around them
ALIGNED_STEPS = 2000  # over which frames' words and phonemes, which teach at once, give way to CTC
EASY_STEPS = 1200  # over which rooms, noises and other throats grow to their full strength


def cut(draw: random.Random, clip: Clip) -> tuple[np.ndarray, float]:
    """A recording from a little before its first word to a little after its last, int16, and where that begins."""
    if "extent" not in clip.about or draw.random() < WHOLE:
        return clip.samples, 0.0
    first, last = clip.about["extent"]
    start_s = max(0.0, first - draw.uniform(0.0, 0.3))
    return clip.samples[int(start_s * RATE) : int((last + draw.uniform(0.05, 0.5)) * RATE)], start_s


def hear(
    ears: Ears, writer: Writer, draw: random.Random, clip: Clip, others: list[np.ndarray], strength: float
) -> tuple[torch.Tensor, list[Span] | None]:
    """A clip's log-mel, augmented, and its words with their times, if they are known."""
    samples, start_s = cut(draw, clip)
    sound = augmented(draw, samples, others, strength)
    words = clip.about.get("words")
    spans = [
        Span(word, writer.spoken(word), *(sound.begin_s + (t - start_s) / sound.rate for t in (begin, end)))
        for word, begin, end in words or ()
    ]
    return masked(draw, ears.mel(sound.samples), strength), spans if words else None


@torch.no_grad()
def word_errors(ears: Ears, writer: Writer, clips: list[Clip]) -> tuple[float, float]:
    """Errors a token, and the share of clips without any, of recordings as they are."""
    ears.eval()
    wrong = total = whole = 0
    for clip in clips:
        first, last = clip.about["extent"]
        sound = clip.samples[max(0, int((first - 0.3) * RATE)) : int((last + 0.5) * RATE)].astype(np.float32) / 32768
        heard = ears.transcribe(ears([ears.mel(sound)])[0][0])
        said = writer.spoken(clip.about["text"])
        errors = _distance(heard, said)
        wrong, total, whole = wrong + errors, total + len(said), whole + (errors == 0)
    ears.train()
    return wrong / max(1, total), whole / max(1, len(clips))


def _distance(a: list[int], b: list[int]) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row, before = [i], row
        for j, y in enumerate(b, 1):
            row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (x != y)))
    return row[-1]


def main() -> None:
    """The program; see the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, help="folder with clips/ and words.*.jsonl, to save to and to go on from")
    parser.add_argument("recordings", type=Path)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--real", type=float, default=0.4, help="share of real recordings in a batch")
    parser.add_argument("--rate", type=float, default=1.5e-3)
    args = parser.parse_args()
    torch.manual_seed(1)
    tokenizer, state = load_tokenizer(args.work), args.work / "hearing.pt"
    writer, thinker = Writer(tokenizer), make_thinker(tokenizer)
    ears = Ears(thinker.audio_tower, thinker.get_input_embeddings().weight, writer.audio)
    optimizer = torch.optim.AdamW(ears.parameters(), args.rate, betas=(0.9, 0.98), weight_decay=0.02)
    step = load(state, optimizer, ears=ears)
    known, strangers = split_strangers(read_recordings(args.recordings, sorted(args.work.glob("words.*.jsonl"))))
    known, strangers = [[c for c in clips if c.about["text"]] for clips in (known, strangers)]
    seen: set[str] = set()
    synthetic = read_clips(args.work / "clips", "users", seen)
    print(f"{len(known)} recordings, {len(strangers)} of strangers, {len(synthetic)} synthetic clips", flush=True)
    read_at = saved_at = time.monotonic()
    bar = tqdm(total=args.steps, initial=step, mininterval=10)
    while step < args.steps:
        if time.monotonic() - read_at > 120:
            synthetic += read_clips(args.work / "clips", "users", seen)
            read_at = time.monotonic()
        draw = random.Random(f"hearing {step}")
        others = [clip.samples for clip in draw.sample(synthetic, 20)]
        clips = [draw.choice(known if draw.random() < args.real else synthetic) for _ in range(args.batch)]
        strength = min(1.0, step / EASY_STEPS)
        heard = [hear(ears, writer, draw, clip, others, strength) for clip in clips]
        mels, aligned = [mel for mel, _ in heard], [spans for _, spans in heard]
        texts = [clip.about["text"] for clip in clips]
        if step % 2 == 0:  # nothing is said in noise
            mels.append(ears.mel(noise(draw, RATE * draw.randint(1, 3)) * 10 ** (-draw.uniform(20, 60) / 20)))
            texts.append("")
            aligned.append([])
        for group in optimizer.param_groups:
            group["lr"] = args.rate * min(1.0, (step + 1) / 300) * 0.05 ** (step / args.steps)
        tokens, hidden = ears(mels)
        frames = ears.frame_loss(tokens, hidden, aligned)
        loss = ears.loss(tokens, hidden, [writer.spoken(text) if text else [] for text in texts], texts)
        begins = max(0.1, 1 - step / ALIGNED_STEPS)
        (begins * frames + (1 - 0.5 * begins) * loss).backward()
        nn.utils.clip_grad_norm_(ears.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        bar.update()
        bar.set_postfix(frames=f"{float(frames):.2f}", ctc=f"{float(loss):.2f}", synthetic=len(synthetic))
        if time.monotonic() - saved_at > 300 or step == args.steps:
            save(state, step, optimizer, ears=ears)
            rate, whole = word_errors(ears, writer, strangers)
            tqdm.write(
                json.dumps({"step": step, "strangers": {"word errors": round(rate, 3), "whole": round(whole, 3)}})
            )
            saved_at = time.monotonic()


if __name__ == "__main__":
    main()
