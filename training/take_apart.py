"""The reverse of `assemble`: a training run's state out of a checkpoint, where the run's own folder is gone.

`train_thinker` goes on from it, and `assemble --voice` takes what speaks from the checkpoint again: the codec's encoder
and quantizer are no part of it. The audio encoder's second classifier (phonemes) is not either, and begins anew.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast, Qwen3OmniMoeForConditionalGeneration

from training.dialogues import Writer
from training.hearing import Ears


def take_apart(folder: Path, work: Path) -> None:
    """Writes tokenizer, `text.pt` and `hearing.pt` of the checkpoint in `folder`, float32, into `work`."""
    model = Qwen3OmniMoeForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    thinker = model.thinker
    ears = Ears(thinker.audio_tower, thinker.get_input_embeddings().weight, Writer(tokenizer).audio)
    work.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(work / "tokenizer")
    torch.save({"thinker": thinker.state_dict()}, work / "text.pt")
    torch.save({"ears": ears.state_dict()}, work / "hearing.pt")


def main() -> None:
    """The program; see the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a checkpoint that assemble wrote")
    parser.add_argument("work", type=Path, help="the folder of a training run, to be made")
    args = parser.parse_args()
    take_apart(args.folder, args.work)


if __name__ == "__main__":
    main()
