"""Puts what the stages learned into one checkpoint: 16-bit safetensors, config, tokenizer and all that goes with it."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from transformers import GenerationConfig, Qwen3OmniMoeForConditionalGeneration, WhisperFeatureExtractor

from training.codec import load_codec
from training.model import load_tokenizer, make_config
from training.run import load
from training.thinker import averaged

LARGEST = 12_000_000  # bytes of all files together
SUGGESTIONS = "suggestions.json"  # what a client may propose to say


def assemble(work: Path, folder: Path, voice: Path | None = None) -> Path:
    """Writes the checkpoint of a training run; what is not ours to make (the model card) stays as it is.

    `voice`: a checkpoint whose talker and code2wav it has, where the run made none.
    """
    tokenizer = load_tokenizer(work)
    config = make_config(tokenizer)
    config.dtype = torch.float16
    model = Qwen3OmniMoeForConditionalGeneration(config)
    average = averaged(model.thinker)
    load(work / "thinker.pt", average=average)
    model.thinker = average.module
    if voice:
        speaks = Qwen3OmniMoeForConditionalGeneration.from_pretrained(voice, dtype=torch.float32)
        model.talker, model.code2wav = speaks.talker, speaks.code2wav
    else:
        load(work / "talker.pt", talker=model.talker)
        model.code2wav = load_codec(work).code2wav
    model = model.to(torch.float16)
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise ValueError(f"{name} does not fit 16 bits")
    end = int(tokenizer.eos_token_id)
    model.generation_config = GenerationConfig(
        eos_token_id=end, pad_token_id=tokenizer.pad_token_id, do_sample=False, talker_do_sample=False
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=128, return_attention_mask=True).save_pretrained(folder)
    shutil.copy(Path(__file__).parent / SUGGESTIONS, folder / SUGGESTIONS)
    size = sum(file.stat().st_size for file in folder.iterdir())
    if size > LARGEST:
        raise ValueError(f"{folder} has {size} bytes, expected at most {LARGEST}")
    return folder


def main() -> None:
    """The program; see the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, help="folder with thinker.pt, talker.pt and codec.pt")
    parser.add_argument("folder", type=Path, help="the checkpoint to write")
    parser.add_argument("--voice", type=Path, help="a checkpoint to take talker and code2wav from")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    assemble(args.work, args.folder, args.voice)
    print(json.dumps({file.name: file.stat().st_size for file in sorted(args.folder.iterdir())}, indent=1))


if __name__ == "__main__":
    main()
