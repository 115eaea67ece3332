"""Trains the audio encoder by CTC on synthetic speakers and on the real recordings."""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np
import torch

from benchmarks.recogniser import word_errors
from config.settings import INPUT_HZ
from training.augment import augmented, noise
from training.clips import Clip, Shards
from training.dialogues import Writer
from training.hearing import Ears, Span, masked
from training.model import load_tokenizer
from training.recordings import known_and_strangers
from training.run import Run
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
    return clip.samples[int(start_s * INPUT_HZ) : int((last + draw.uniform(0.05, 0.5)) * INPUT_HZ)], start_s


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
def score(ears: Ears, writer: Writer, clips: list[Clip]) -> dict[str, float]:
    """Word errors, a share of the words, and the share of clips without any, of recordings as they are."""
    ears.eval()
    wrong = total = whole = 0
    for clip in clips:
        heard = ears.transcribe(ears([ears.mel(clip.samples.astype(np.float32) / 32768)])[0][0])
        said = writer.spoken(clip.about["text"])
        errors = word_errors(heard, said)
        wrong, total, whole = wrong + errors, total + len(said), whole + (errors == 0)
    ears.train()
    return {"word errors": round(wrong / total, 3), "whole": round(whole / len(clips), 3)}


def main() -> None:
    """The program; see the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, help="folder with clips/ and words.*.jsonl, to save to and to go on from")
    parser.add_argument("recordings", type=Path)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--real", type=float, default=0.4, help="share of real recordings in a batch")
    parser.add_argument("--rate", type=float, default=1.5e-3)
    args = parser.parse_args()
    torch.manual_seed(1)
    tokenizer = load_tokenizer(args.work)
    writer, thinker = Writer(tokenizer), make_thinker(tokenizer)
    ears = Ears(thinker.audio_tower, thinker.get_input_embeddings().weight, writer.audio)
    known, strangers = known_and_strangers(args.work, args.recordings)
    synthetic = Shards(args.work / "clips", "users")
    run = Run(args.work / "hearing.pt", ears.parameters(), args.steps, args.rate, warm_up=300, save_s=300, ears=ears)
    for step in run:
        synthetic.refresh()
        draw = random.Random(f"hearing {step}")
        others = [clip.samples for clip in draw.sample(synthetic.clips, 20)]
        clips = [draw.choice(known if draw.random() < args.real else synthetic.clips) for _ in range(args.batch)]
        strength = min(1.0, step / EASY_STEPS)
        heard = [hear(ears, writer, draw, clip, others, strength) for clip in clips]
        mels, aligned = [mel for mel, _ in heard], [spans for _, spans in heard]
        texts = [clip.about["text"] for clip in clips]
        if step % 2 == 0:  # nothing is said in noise
            mels.append(ears.mel(noise(draw, INPUT_HZ * draw.randint(1, 3)) * 10 ** (-draw.uniform(20, 60) / 20)))
            texts.append("")
            aligned.append([])
        tokens, hidden = ears(mels)
        frames = ears.frame_loss(tokens, hidden, aligned)
        ctc = ears.loss(tokens, hidden, [writer.spoken(text) for text in texts], texts)
        begins = max(0.1, 1 - step / ALIGNED_STEPS)
        loss = begins * frames + (1 - 0.5 * begins) * ctc
        if run.learn(loss, frames=frames, ctc=ctc, synthetic=len(synthetic.clips)):
            run.tell(f"strangers: {score(ears, writer, strangers)}")


if __name__ == "__main__":
    main()
