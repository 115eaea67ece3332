"""Trains the audio encoder by CTC on synthetic speakers and on recordings."""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np
import torch

from config.settings import INPUT_HZ
from training.augment import augmented, noise
from training.clips import Clip, Shards
from training.dialogues import Writer
from training.judges.recogniser import word_errors
from training.model import load_tokenizer
from training.recordings import split_recordings
from training.run import Run
from training.speech_encoder import CtcEncoder, Span, masked
from training.thinker import make_thinker

UNTRIMMED = 0.4  # share of recordings with all the silence around their words
ALIGNED_STEPS = 2000  # steps over which the loss moves from aligned words and phonemes to CTC
EASY_STEPS = 1200  # steps over which the augmentation grows to its full strength


def trim(draw: random.Random, clip: Clip) -> tuple[np.ndarray, float]:
    """Trim a recording to its words with short margins; return int16 samples and their begin in seconds."""
    if "extent" not in clip.about or draw.random() < UNTRIMMED:
        return clip.samples, 0.0
    first, last = clip.about["extent"]
    start_s = max(0.0, first - draw.uniform(0.0, 0.3))
    return clip.samples[int(start_s * INPUT_HZ) : int((last + draw.uniform(0.05, 0.5)) * INPUT_HZ)], start_s


def prepare(
    encoder: CtcEncoder, writer: Writer, draw: random.Random, clip: Clip, others: list[np.ndarray], strength: float
) -> tuple[torch.Tensor, list[Span] | None]:
    """Return a clip's log-mel, augmented, and its words with their times, if they are known."""
    samples, start_s = trim(draw, clip)
    changed = augmented(draw, samples, others, strength)
    words = clip.about.get("words")
    spans = [
        Span(word, writer.encode_speech(word), *(changed.begin_s + (t - start_s) / changed.rate for t in (begin, end)))
        for word, begin, end in words or ()
    ]
    return masked(draw, encoder.mel(changed.samples), strength), spans if words else None


@torch.no_grad()
def score(encoder: CtcEncoder, writer: Writer, clips: list[Clip]) -> dict[str, float]:
    """Return the word error rate and the share of clips without errors, of recordings without augmentation."""
    encoder.eval()
    errors = total = correct = 0
    for clip in clips:
        recognised = encoder.transcribe(encoder([encoder.mel(clip.samples.astype(np.float32) / 32768)])[0][0])
        words = writer.encode_speech(clip.about["text"])
        wrong = word_errors(recognised, words)
        errors, total, correct = errors + wrong, total + len(words), correct + (wrong == 0)
    encoder.train()
    return {"word error rate": round(errors / total, 3), "correct clips": round(correct / len(clips), 3)}


def main() -> None:
    """Run the program that the module describes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, help="folder with clips/ and words.*.jsonl, where the state is saved")
    parser.add_argument("recordings", type=Path)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--real", type=float, default=0.4, help="share of recordings in a batch")
    parser.add_argument("--rate", type=float, default=1.5e-3)
    args = parser.parse_args()
    torch.manual_seed(1)
    tokenizer = load_tokenizer(args.work)
    writer, thinker = Writer(tokenizer), make_thinker(tokenizer)
    encoder = CtcEncoder(thinker.audio_tower, thinker.get_input_embeddings().weight, writer.audio_id)
    recorded, held_out = split_recordings(args.work, args.recordings)
    synthetic = Shards(args.work / "clips", "users")
    path = args.work / "speech_encoder.pt"
    run = Run(path, encoder.parameters(), args.steps, args.rate, warm_up=300, save_s=300, encoder=encoder)
    for step in run:
        synthetic.refresh()
        draw = random.Random(f"hearing {step}")
        others = [clip.samples for clip in draw.sample(synthetic.clips, 20)]
        clips = [draw.choice(recorded if draw.random() < args.real else synthetic.clips) for _ in range(args.batch)]
        strength = min(1.0, step / EASY_STEPS)
        inputs = [prepare(encoder, writer, draw, clip, others, strength) for clip in clips]
        mels, aligned = [mel for mel, _ in inputs], [spans for _, spans in inputs]
        texts = [clip.about["text"] for clip in clips]
        if step % 2 == 0:  # noise has an empty transcript
            mels.append(encoder.mel(noise(draw, INPUT_HZ * draw.randint(1, 3)) * 10 ** (-draw.uniform(20, 60) / 20)))
            texts.append("")
            aligned.append([])
        tokens, hidden = encoder(mels)
        frames = encoder.frame_loss(tokens, hidden, aligned)
        ctc = encoder.loss(tokens, hidden, [writer.encode_speech(text) for text in texts], texts)
        aligned_share = max(0.1, 1 - step / ALIGNED_STEPS)
        loss = aligned_share * frames + (1 - 0.5 * aligned_share) * ctc
        if run.learn(loss, frames=frames, ctc=ctc, synthetic=len(synthetic.clips)):
            run.log(f"held-out speakers: {score(encoder, writer, held_out)}")


if __name__ == "__main__":
    main()
