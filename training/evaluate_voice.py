"""Evaluates a codec or a talker in training: word errors of pocketsphinx on its sentences and on the original voice.

`python -m training.evaluate_voice WORK codec` encodes and decodes sentences; `... talker` generates them by the talker.
Also writes the sentences as WAV files.
"""

from __future__ import annotations

import argparse
import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from torch import Tensor

from client.sound import to_pcm16
from config.settings import OUTPUT_HZ
from training.clips import Clip
from training.codec import load_codec
from training.dialogues import Writer
from training.judges.recogniser import Recogniser, word_errors, words_of
from training.model import CODEBOOKS, load_tokenizer, make_config
from training.run import load
from training.synthesize import barista_clips
from training.talker import Sentence, Teacher, make_talker, make_teacher

SHOWN = 6  # printed sentences
MAX_FRAMES = 140  # codec frames of a sentence


@torch.no_grad()
def speak(teacher: Teacher, talker: Any, text: list[int], temperature: float, user: Tensor) -> Tensor | None:
    """Generate the talker's codes [T, books] for a text by `generate()`; None if it does not end."""
    config = talker.config
    blank = torch.zeros(0, CODEBOOKS, dtype=torch.long)
    inputs, _ = teacher.sequence(Sentence(text, blank, None), blank, user)
    codes = config.text_config.vocab_size
    special = [code for code in range(codes - 1024, codes) if code != config.codec_eos_token_id]
    generated = talker.generate(
        inputs_embeds=inputs[None],
        attention_mask=torch.ones(1, len(inputs), dtype=torch.long),
        talker_input_ids=torch.zeros(1, len(inputs), dtype=torch.long),
        trailing_text_hidden=teacher.trailing(text)[None],
        tts_pad_embed=teacher.pad[None],
        max_new_tokens=MAX_FRAMES,
        do_sample=temperature > 0,
        **({"temperature": temperature, "top_k": 50} if temperature > 0 else {}),
        eos_token_id=config.codec_eos_token_id,
        suppress_tokens=special,
        output_hidden_states=True,
        return_dict_in_generate=True,
    )
    if generated.sequences[0, -1] != config.codec_eos_token_id:
        return None
    frames = [codes for *_, codes in generated.hidden_states if codes is not None]
    return torch.cat(frames) if frames else blank


def _new_sentences(work: Path) -> Iterator[Clip]:
    """Yield sentences by the original voice that are rare in the training data."""
    for samples, about in barista_clips(work / "voices", seed=-1):
        if len(words_of(about["text"])) > 6:
            yield Clip((samples * 32767).astype(np.int16), about)


def main() -> None:
    """Run the program that the module describes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("what", choices=("codec", "talker"))
    parser.add_argument("--sentences", type=int, default=20)
    parser.add_argument("--temperature", type=float, default=0.0)
    args = parser.parse_args()
    torch.manual_seed(1)
    tokenizer, codec, recogniser, draw = (
        load_tokenizer(args.work),
        load_codec(args.work),
        Recogniser(),
        random.Random(3),
    )
    writer = Writer(tokenizer)
    if args.what == "talker":
        talker = make_talker(make_config(tokenizer))
        load(args.work / "talker.pt", talker=talker)
        talker.eval()
        teacher = make_teacher(tokenizer, talker)
    (args.work / "evaluation").mkdir(exist_ok=True)
    errors = original_errors = total = 0
    for i, clip in enumerate(itertools.islice(_new_sentences(args.work), args.sentences)):
        text = clip.about["text"]
        if args.what == "codec":
            codes: Tensor | None = codec.codes(torch.from_numpy(clip.samples.astype(np.float32) / 32768))
        else:
            tokens = [*writer.encode(text), *writer.encode("<|im_end|>")]
            codes = speak(teacher, talker, tokens, args.temperature, teacher.user_part(draw))
        pcm = np.zeros(0, np.int16)
        if codes is not None and len(codes):
            with torch.no_grad():
                pcm = to_pcm16(codec.code2wav(codes.T[None])[0, 0].numpy())
        soundfile.write(args.work / "evaluation" / f"{args.what}-{i}.wav", pcm, OUTPUT_HZ)
        recognised, words = recogniser.transcribe(pcm, OUTPUT_HZ), words_of(text)
        errors += word_errors(words_of(recognised), words)
        original_errors += word_errors(words_of(recogniser.transcribe(clip.samples, OUTPUT_HZ)), words)
        total += len(words)
        if i < SHOWN:
            seconds = f"{len(pcm) / OUTPUT_HZ:.1f} s, original {len(clip.samples) / OUTPUT_HZ:.1f} s"
            print(f"{text}\n  recognised: {recognised}  ({'does not end' if codes is None else seconds})")
    print(f"word error rate: {errors / total:.1%}, of the original: {original_errors / total:.1%}")


if __name__ == "__main__":
    main()
