"""Trains code2wav on codes as the talker speaks them, seldom all right: it learns to make clear speech of them.

Sentence by sentence, the talker says what it would speak in each frame; the sound that is wanted is the original. The
words lie on the grid of codec frames, so the two fit. Its sentences should be new to the talker, as a user's are.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from training import codec
from training.clips import Shards
from training.dialogues import Writer
from training.model import CODEBOOK, CODEBOOKS, load_tokenizer, make_config
from training.run import Run, load
from training.talker import make_talker, make_teacher
from training.train_codec import CONTEXT, DECODED, compare
from training.train_talker import spoken

Version = tuple[Tensor, np.ndarray]  # a sentence: codes [T, books], and its samples, int16


class Speech:
    """The sentences as the talker speaks them: after the true frames, and after its own; and as they are."""

    def __init__(self, work: Path, held: Path):
        tokenizer = load_tokenizer(work)
        talker = make_talker(make_config(tokenizer))
        load(work / "talker.pt", talker=talker)
        talker.eval()
        self._codec, self._writer, self._tokenizer = codec.load_codec(work), Writer(tokenizer), tokenizer
        self._teacher, self._shards, self._draw = (
            make_teacher(tokenizer, talker),
            Shards(held, "barista"),
            random.Random(1),
        )
        self.true: list[Version] = []
        self.own: list[Version] = []

    def refresh(self) -> None:
        """Reads the sentences that were written since."""
        for clip in self._shards.refresh():
            sentence = spoken(clip, self._codec, self._writer, self._tokenizer)
            samples = np.pad(clip.samples, (0, len(sentence.codes) * codec.FRAME - len(clip.samples)))
            self.true.append((sentence.codes, samples))
            heard = sentence.codes
            for _ in range(2):
                heard = self._teacher.likeliest(sentence, heard, self._teacher.user_part(self._draw))
                self.own.append((heard, samples))

    def crop(self, true_share: float, from_beginning: bool) -> Version:
        """`CONTEXT` frames, of one sentence and the beginnings of others."""
        versions = self.true if random.random() < true_share else self.own
        codes, samples = random.choice(versions)
        begin = 0 if from_beginning else random.randrange(len(codes))
        codes, samples = codes[begin:], samples[begin * codec.FRAME :]
        while len(codes) < CONTEXT:
            more = random.choice(versions)
            codes, samples = torch.cat([codes, more[0]]), np.concatenate([samples, more[1]])
        return codes[:CONTEXT], samples[: CONTEXT * codec.FRAME]


def main() -> None:
    """The program; see the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, help="folder with codec.pt and talker.pt, to save to and to go on from")
    parser.add_argument("held", type=Path, help="folder with clips of the barista that the talker does not know")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rate", type=float, default=5e-4)
    parser.add_argument("--true", type=float, default=0.2, help="share of crops with the codes as they are")
    args = parser.parse_args()
    random.seed(1), torch.manual_seed(1)
    code2wav = codec.load_codec(args.work).code2wav
    run = Run(
        args.work / codec.DECODER_STATE, code2wav.parameters(), args.steps, args.rate,
        warm_up=100, final=0.1, betas=(0.8, 0.99), weight_decay=0.01, code2wav=code2wav,
    )  # fmt: skip
    code2wav.train()
    distance, speech = codec.SpectralLoss(), Speech(args.work, args.held)
    books = torch.arange(CODEBOOKS) * CODEBOOK
    for _ in run:
        speech.refresh()
        start = random.randrange(CONTEXT - DECODED + 1) if random.random() < 0.8 else 0
        codes, samples = zip(*(speech.crop(args.true, start == 0) for _ in range(args.batch)), strict=True)
        wanted = torch.from_numpy(np.stack(samples).astype(np.float32) / 32768)
        latent = code2wav.code_embedding(torch.stack(codes) + books).mean(2)
        loss = compare(code2wav, latent, wanted, start, distance)
        run.learn(loss, loss=loss, sentences=len(speech.true))


if __name__ == "__main__":
    main()
