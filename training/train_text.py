"""Trains the thinker's text decoder on written dialogues, with simulated encoder output for spoken turns."""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch

from training.dialogues import Writer
from training.model import load_tokenizer
from training.run import Run
from training.thinker import answer_loss, make_thinker, simulate_audio


def main() -> None:
    """Run the program that the module describes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, help="folder where the state is saved")
    parser.add_argument("--steps", type=int, default=1150)
    parser.add_argument("--batch", type=int, default=12, help="dialogues in a batch")
    parser.add_argument("--rate", type=float, default=2e-3)
    args = parser.parse_args()
    torch.manual_seed(1)
    tokenizer = load_tokenizer(args.work)
    thinker, writer = make_thinker(tokenizer), Writer(tokenizer)
    embeddings = thinker.get_input_embeddings().weight
    learned = [p for n, p in thinker.named_parameters() if n.startswith(("model.", "lm_head")) and p.requires_grad]
    run = Run(args.work / "text.pt", learned, args.steps, args.rate, weight_decay=0.01, thinker=thinker)
    for step in run:
        draw = random.Random(f"text {step}")
        dialogues = [writer.write(draw, None, draw.randint(1, 6), spoken=0.6) for _ in range(args.batch)]
        audio = simulate_audio(writer, embeddings, dialogues, draw)
        loss, accuracy = answer_loss(thinker, writer, dialogues, audio)
        run.learn(loss, loss=loss, accuracy=accuracy)


if __name__ == "__main__":
    main()
