"""Trains the codec on the barista's voice: encoder, quantizer and transformers' code2wav."""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeCode2Wav

from training import codec
from training.clips import Shards
from training.model import CODEBOOKS
from training.run import Run

CONTEXT, DECODED, WARM_UP = 40, 12, 3  # codec frames: in a clip, decoded, decoded before the compared ones
ALL_BOOKS = 0.5  # share of steps that keep every codebook
# The other steps keep at most MAX_FEW, so that these carry the speech: the talker predicts the first books best.
MAX_FEW = 4


def decode(code2wav: Qwen3OmniMoeCode2Wav, latent: Tensor, start: int) -> Tensor:
    """Decode `DECODED` frames from `start` to [B, samples]; the transformer reads all of `latent` [B, T, hidden]."""
    hidden = code2wav.pre_transformer(inputs_embeds=latent).last_hidden_state
    hidden = hidden[:, start : start + DECODED].transpose(1, 2)
    for blocks in code2wav.upsample:
        for block in blocks:
            hidden = block(hidden)
    for block in code2wav.decoder:
        hidden = block(hidden)
    return hidden.squeeze(1)


def main() -> None:
    """Run the program that the module describes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, help="folder with clips/, where the state is saved")
    parser.add_argument("--steps", type=int, default=9000)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rate", type=float, default=1e-3)
    args = parser.parse_args()
    random.seed(1), torch.manual_seed(1)
    parts = codec.make_codec(args.work)
    encoder, quantizer, code2wav = parts
    learned = [*encoder.parameters(), *code2wav.parameters()]
    run = Run(
        args.work / codec.CODEC_STATE, learned, args.steps, args.rate,
        warm_up=100, final=0.1, betas=(0.8, 0.99), weight_decay=0.01, **parts._asdict(),
    )  # fmt: skip
    code2wav.train()
    distance = codec.SpectralLoss()
    shards = Shards(args.work / "clips", "barista")
    for _ in run:
        shards.refresh()
        original = torch.from_numpy(np.stack([_crop(random.choice(shards.clips).samples) for _ in range(args.batch)]))
        latent = encoder(original)
        start = random.randrange(CONTEXT - DECODED + 1) if random.random() < 0.8 else 0
        keep = CODEBOOKS if random.random() < ALL_BOOKS else random.randint(1, MAX_FEW)
        quantized = quantizer(latent, keep)
        decoded = decode(code2wav, quantized.latent, start)
        first = WARM_UP * codec.FRAME if start else 0
        target = original[:, start * codec.FRAME :][:, : decoded.shape[1]]
        loss = distance(decoded[:, first:], target[:, first:])
        run.learn(
            loss + 0.25 * quantized.commitment, loss=loss, commitment=quantized.commitment, clips=len(shards.clips)
        )


def _crop(samples: np.ndarray) -> np.ndarray:
    """Return a random stretch of `CONTEXT` whole frames, float32, padded with silence."""
    length = CONTEXT * codec.FRAME
    sound = np.zeros(length + len(samples), np.float32)
    sound[length // 2 : length // 2 + len(samples)] = samples / 32768
    start = random.randrange((len(sound) - length) // codec.FRAME + 1) * codec.FRAME
    return sound[start : start + length]


if __name__ == "__main__":
    main()
