"""Trains the thinker's text half on written dialogues, with a stand-in for what the encoder will give for speech."""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from training.dialogues import Writer
from training.model import load_tokenizer
from training.state import load, save
from training.thinker import answer_loss, make_thinker, stand_in


def main() -> None:
    """The program; see the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, help="folder to save to and to go on from")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=12, help="dialogues")
    parser.add_argument("--rate", type=float, default=2e-3)
    args = parser.parse_args()
    torch.manual_seed(1)
    tokenizer, state = load_tokenizer(args.work), args.work / "text.pt"
    thinker, writer = make_thinker(tokenizer), Writer(tokenizer)
    embeddings = thinker.get_input_embeddings().weight
    learned = [p for n, p in thinker.named_parameters() if n.startswith(("model.", "lm_head")) and p.requires_grad]
    optimizer = torch.optim.AdamW(learned, args.rate, betas=(0.9, 0.98), weight_decay=0.01)
    step = load(state, optimizer, thinker=thinker)
    saved_at = time.monotonic()
    bar = tqdm(total=args.steps, initial=step, mininterval=10)
    while step < args.steps:
        draw = random.Random(f"text {step}")
        for group in optimizer.param_groups:
            group["lr"] = args.rate * min(1.0, (step + 1) / 200) * 0.05 ** (step / args.steps)
        dialogues = [writer.write(draw, None, draw.randint(1, 6), audio=0.6) for _ in range(args.batch)]
        heard = [
            [stand_in(writer.spoken(said.text), embeddings, writer.audio, draw) for _, said in d.sounds]
            for d in dialogues
        ]
        loss, right = answer_loss(thinker, writer, dialogues, heard)
        loss.backward()
        nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        bar.update()
        bar.set_postfix(loss=f"{float(loss):.3f}", right=f"{right:.3f}")
        if time.monotonic() - saved_at > 120 or step == args.steps:
            save(state, step, optimizer, thinker=thinker)
            saved_at = time.monotonic()


if __name__ == "__main__":
    main()
