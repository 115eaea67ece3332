"""Reverses `assemble`: creates the state of a training run from a checkpoint, if the run's folder was lost.

`train_thinker` continues from this state, and `assemble --voice` copies talker and code2wav from the checkpoint, which
has neither the codec's encoder nor its quantizer. The audio encoder's phoneme classifier is trained again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast, Qwen3OmniMoeForConditionalGeneration

from training.dialogues import Writer
from training.speech_encoder import CtcEncoder


def disassemble(folder: Path, work: Path) -> None:
    """Write tokenizer, `text.pt` and `speech_encoder.pt` of the checkpoint in `folder`, float32, into `work`."""
    model = Qwen3OmniMoeForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    thinker = model.thinker
    encoder = CtcEncoder(thinker.audio_tower, thinker.get_input_embeddings().weight, Writer(tokenizer).audio_id)
    work.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(work / "tokenizer")
    torch.save({"thinker": thinker.state_dict()}, work / "text.pt")
    torch.save({"encoder": encoder.state_dict()}, work / "speech_encoder.pt")


def main() -> None:
    """Run the program that the module describes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="checkpoint that assemble wrote")
    parser.add_argument("work", type=Path, help="folder of a training run to create")
    args = parser.parse_args()
    disassemble(args.folder, args.work)


if __name__ == "__main__":
    main()
