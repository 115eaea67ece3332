"""Assembles the trained stages into one checkpoint: 16-bit safetensors, config, tokenizer and preprocessor."""

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

MAX_BYTES = 12_000_000  # size of all files together
SUGGESTIONS = "suggestions.json"  # example sentences for a client's user


def assemble(work: Path, folder: Path, voice: Path | None = None) -> Path:
    """Write the checkpoint of a training run; other files in the folder (the model card) stay as they are.

    `voice`: a checkpoint with the talker and code2wav to use; None: those of the run.
    """
    tokenizer = load_tokenizer(work)
    config = make_config(tokenizer)
    config.dtype = torch.float16
    model = Qwen3OmniMoeForConditionalGeneration(config)
    average = averaged(model.thinker)
    load(work / "thinker.pt", average=average)
    model.thinker = average.module
    if voice:
        source = Qwen3OmniMoeForConditionalGeneration.from_pretrained(voice, dtype=torch.float32)
        model.talker, model.code2wav = source.talker, source.code2wav
    else:
        load(work / "talker.pt", talker=model.talker)
        model.code2wav = load_codec(work).code2wav
    model = model.to(torch.float16)
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise ValueError(f"expected finite 16-bit weights, got overflow in {name}")
    end = int(tokenizer.eos_token_id)
    model.generation_config = GenerationConfig(
        eos_token_id=end, pad_token_id=tokenizer.pad_token_id, do_sample=False, talker_do_sample=False
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=128, return_attention_mask=True).save_pretrained(folder)
    shutil.copy(Path(__file__).parent / SUGGESTIONS, folder / SUGGESTIONS)
    size = sum(file.stat().st_size for file in folder.iterdir())
    if size > MAX_BYTES:
        raise ValueError(f"expected at most {MAX_BYTES} bytes, got {size} in {folder}")
    return folder


def main() -> None:
    """Run the program that the module describes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, help="folder with thinker.pt, talker.pt and codec.pt")
    parser.add_argument("folder", type=Path, help="checkpoint to write")
    parser.add_argument("--voice", type=Path, help="checkpoint whose talker and code2wav are used")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    assemble(args.work, args.folder, args.voice)
    print(json.dumps({file.name: file.stat().st_size for file in sorted(args.folder.iterdir())}, indent=1))


if __name__ == "__main__":
    main()
