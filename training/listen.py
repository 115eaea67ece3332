"""Listens to a codec or a talker in training: word errors of pocketsphinx on its sentences and on the original voice.

`python -m training.listen WORK codec` codes sentences and decodes them again; `... talker` lets the talker speak them.
Writes WAV files beside the figures.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from transformers import DynamicCache

from benchmarks.recogniser import Recogniser, word_errors, words_of
from training import codec
from training.clips import Clip
from training.dialogues import Writer
from training.model import CODEBOOK, CODEBOOKS, CODEC, load_tokenizer, make_config
from training.synthesize import barista_clips
from training.talker import Spoken, Teacher, make_talker
from training.thinker import make_thinker
from training.train_codec import make_code2wav

LONGEST = 140  # codec frames


@torch.no_grad()
def speak(
    teacher: Teacher, talker: Any, text: list[int], temperature: float, draw: random.Random
) -> torch.Tensor | None:
    """The talker's codes [T, books] for a text; None if it does not end. Sampled in the manner of `generate()`."""
    end = teacher.end
    torch.manual_seed(draw.getrandbits(31))
    blank = torch.zeros(0, CODEBOOKS, dtype=torch.long)
    inputs, _ = teacher.sequence(Spoken(text, blank, None), blank, teacher.user_part(draw))
    cache, frames, inputs, seen = DynamicCache(), [], inputs[None], 0
    while len(frames) < LONGEST:
        positions = torch.arange(seen, seen + inputs.shape[1]).expand(3, 1, -1)
        seen += inputs.shape[1]
        mask = torch.ones(1, seen, dtype=torch.long)
        hidden = talker.model(
            inputs_embeds=inputs, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        ).last_hidden_state[:, -1]
        logits = talker.codec_head(hidden)[0]
        logits[CODEBOOK:] = torch.where(torch.arange(CODEBOOK, len(logits)) == end, logits[CODEBOOK:], -torch.inf)
        code = _sample(logits, temperature, 50, 1.0)
        if code == end:
            return torch.stack(frames) if frames else blank
        codes = [code]
        sequence = [hidden[0], talker.get_input_embeddings()(torch.tensor(code))]
        for book in range(1, CODEBOOKS):
            out = talker.code_predictor.model(inputs_embeds=torch.stack(sequence)[None]).last_hidden_state[0, -1]
            codes.append(_sample(talker.code_predictor.lm_head[book - 1](out), temperature and 1.0, 50, 0.8))
            if book < CODEBOOKS - 1:
                sequence.append(talker.code_predictor.get_input_embeddings()[book - 1](torch.tensor(codes[-1])))
        frames.append(torch.tensor(codes))
        inputs = teacher.step(frames[-1], text, len(frames) - 1)
    return None


def _sample(logits: torch.Tensor, temperature: float, top_k: int, top_p: float) -> int:
    if temperature == 0:
        return int(logits.argmax())
    values, indices = (logits / temperature).topk(min(top_k, len(logits)))
    probabilities = values.softmax(-1)
    kept = probabilities.cumsum(-1) - probabilities < top_p
    return int(indices[torch.multinomial(probabilities * kept, 1)])


def _new_sentences(work: Path) -> Iterator[Clip]:
    """Sentences that the training has hardly had, by the original voice."""
    for samples, about in barista_clips(work / "voices", seed=-1):
        if len(words_of(about["text"])) > 6:
            yield Clip((samples * 32767).astype(np.int16), about)


def main() -> None:
    """The program; see the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("what", choices=("codec", "talker"))
    parser.add_argument("--sentences", type=int, default=20)
    parser.add_argument("--temperature", type=float, default=0.9)
    args = parser.parse_args()
    torch.manual_seed(1)
    tokenizer = load_tokenizer(args.work)
    config, writer, recogniser = make_config(tokenizer), Writer(tokenizer), Recogniser()
    code2wav = make_code2wav(args.work)
    state = torch.load(args.work / "codec.pt", weights_only=True)
    code2wav.load_state_dict(state["code2wav"])
    encoder, quantizer = codec.Encoder(CODEC), codec.ResidualQuantizer(CODEBOOKS, CODEBOOK, CODEC)
    encoder.load_state_dict(state["encoder"]), quantizer.load_state_dict(state["quantizer"])
    code2wav.eval(), encoder.eval(), quantizer.eval()
    if state["stage"] == "all":
        code2wav.code_embedding.weight.data = (quantizer.entries * CODEBOOKS).reshape(-1, CODEC)
    draw = random.Random(3)
    clips = list(itertools.islice(_new_sentences(args.work), args.sentences))
    if args.what == "talker":
        talker = make_talker(config)
        talker.load_state_dict(torch.load(args.work / "talker.pt", weights_only=True)["talker"])
        talker.eval()
        teacher = Teacher(config, talker, make_thinker(tokenizer).get_input_embeddings().weight.detach(),
                          writer.encode("<|im_start|>assistant\n"))  # fmt: skip
    errors = np.zeros(3)
    (args.work / "listen").mkdir(exist_ok=True)
    for i, clip in enumerate(clips):
        text, said = clip.about["text"], words_of(clip.about["text"])
        original = clip.samples
        if args.what == "codec":
            samples = torch.from_numpy(original.astype(np.float32) / 32768)
            samples = torch.nn.functional.pad(samples, (0, -len(samples) % codec.FRAME))
            with torch.no_grad():
                codes = quantizer.encode(encoder(samples[None]))[0]
        else:
            spoken = speak(
                teacher, talker, [*writer.encode(text), *writer.encode("<|im_end|>")], args.temperature, draw
            )
            if spoken is None or not len(spoken):
                print("does not end, or says nothing:", text)
                errors += (len(said), 0, len(said))
                continue
            codes = spoken
        with torch.no_grad():
            wave = code2wav(codes.T[None])[0, 0].numpy()
        pcm = (wave * 32767).astype(np.int16)
        soundfile.write(args.work / "listen" / f"{args.what}-{i}.wav", pcm, codec.RATE)
        heard = recogniser.transcribe(pcm, codec.RATE)
        errors += (
            word_errors(words_of(heard), said),
            word_errors(words_of(recogniser.transcribe(original, codec.RATE)), said),
            len(said),
        )
        if i < 6:
            print(f"{text}\n  heard: {heard}  ({len(codes) * 0.08:.1f} s, original {len(original) / codec.RATE:.1f} s)")
    print(
        json.dumps(
            {"step": state["step"], "word errors": errors[0] / errors[2], "of the original": errors[1] / errors[2]}
        )
    )


if __name__ == "__main__":
    main()
