"""Trains the thinker's text half on written dialogues, with a stand-in for what the encoder will give for speech."""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch

from training.dialogues import Writer
from training.model import load_tokenizer
from training.run import Run
from training.thinker import answer_loss, make_thinker, stand_ins


def main() -> None:
    """The program; see the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, help="folder to save to and to go on from")
    parser.add_argument("--steps", type=int, default=1150)
    parser.add_argument("--batch", type=int, default=12, help="dialogues")
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
        dialogues = [writer.write(draw, None, draw.randint(1, 6), audio=0.6) for _ in range(args.batch)]
        loss, right = answer_loss(thinker, writer, dialogues, stand_ins(writer, embeddings, dialogues, draw))
        run.learn(loss, loss=loss, right=right)


if __name__ == "__main__":
    main()
