"""Trains the codec on the barista's voice: encoder, quantizer and transformers' code2wav.

`--stage all` trains the three together. `--stage decoder` keeps encoder and quantizer as they are and trains code2wav
on their codes, so that a talker can learn those codes meanwhile.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeCode2Wav

from training import codec
from training.clips import read_clips
from training.model import CODEBOOK, CODEBOOKS, load_tokenizer, make_config

CONTEXT, DECODED, WARM = 40, 12, 3  # codec frames: in a clip, through the decoder, of those not compared


def make_code2wav(work: Path) -> Qwen3OmniMoeCode2Wav:
    """transformers' code2wav, with PyTorch's own initial convolutions in place of nearly silent ones."""
    model = Qwen3OmniMoeCode2Wav._from_config(make_config(load_tokenizer(work)).code2wav_config)
    for module in model.modules():
        if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
            module.reset_parameters()
    for name, parameter in model.named_parameters():
        if name.endswith(("gamma", "_layer_scale.scale")):
            parameter.data.fill_(0.1)
    return model


def decode(code2wav: Qwen3OmniMoeCode2Wav, latent: Tensor, start: int) -> Tensor:
    """The waveform [B, samples] of `DECODED` frames from `start`, all of `latent` [B, T, hidden] heard before them."""
    hidden = (
        code2wav.pre_transformer(inputs_embeds=latent).last_hidden_state[:, start : start + DECODED].transpose(1, 2)
    )
    for blocks in code2wav.upsample:
        for block in blocks:
            hidden = block(hidden)
    for block in code2wav.decoder:
        hidden = block(hidden)
    return hidden.squeeze(1)


def main() -> None:
    """The program; see the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, help="folder with clips/, to save to and to go on from")
    parser.add_argument("--stage", choices=("all", "decoder"), default="all")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rate", type=float, default=1e-3)
    args = parser.parse_args()
    path = args.work / "codec.pt"
    random.seed(1), torch.manual_seed(1)

    code2wav = make_code2wav(args.work)
    hidden = code2wav.config.hidden_size
    encoder, quantizer = codec.Encoder(hidden), codec.ResidualQuantizer(CODEBOOKS, CODEBOOK, hidden)
    parts = {"code2wav": code2wav, "encoder": encoder, "quantizer": quantizer}
    learned = [*code2wav.parameters(), *(encoder.parameters() if args.stage == "all" else [])]
    optimizer = torch.optim.AdamW(learned, args.rate, betas=(0.8, 0.99), weight_decay=0.01)
    step = 0
    if path.exists():
        state = torch.load(path, weights_only=False)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        if state["stage"] == args.stage:
            optimizer.load_state_dict(state["optimizer"])
            step = state["step"]
        elif args.stage == "decoder":
            code2wav.code_embedding.weight.data = (quantizer.entries * CODEBOOKS).reshape(-1, hidden).clone()
    quantizer.train(args.stage == "all")
    distance = codec.SpectralLoss()

    def save() -> None:
        state = {name: part.state_dict() for name, part in parts.items()}
        state |= {"optimizer": optimizer.state_dict(), "step": step, "stage": args.stage}
        torch.save(state, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)

    seen: set[str] = set()
    sounds: list[np.ndarray] = []
    read_at = saved_at = time.monotonic()
    bar = tqdm(total=args.steps, initial=step, mininterval=10)
    while step < args.steps:
        if not sounds or time.monotonic() - read_at > 120:  # more may have been synthesized
            sounds += [clip.samples for clip in read_clips(args.work / "clips", "barista", seen)]
            read_at = time.monotonic()
        wanted = torch.from_numpy(np.stack([_crop(random.choice(sounds)) for _ in range(args.batch)]))
        for group in optimizer.param_groups:
            group["lr"] = args.rate * min(1.0, (step + 1) / 100) * 0.1 ** (step / args.steps)
        latent = encoder(wanted)
        start = random.randrange(CONTEXT - DECODED + 1) if random.random() < 0.8 else 0
        if args.stage == "all":
            keep = CODEBOOKS if random.random() < 0.85 else random.randint(1, CODEBOOKS)
            quantized = quantizer(latent, keep)
            latent, commitment = quantized.latent, quantized.commitment
        else:
            codes = quantizer.encode(latent.detach())
            offset = torch.arange(CODEBOOKS) * CODEBOOK
            latent, commitment = code2wav.code_embedding(codes + offset).mean(2), torch.zeros(())
        heard = decode(code2wav, latent, start)
        first = WARM * codec.FRAME if start else 0
        target = wanted[:, start * codec.FRAME :][:, : heard.shape[1]]
        loss = distance(heard[:, first:], target[:, first:])
        (loss + 0.25 * commitment).backward()
        norm = nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        bar.update()
        bar.set_postfix(loss=f"{loss:.3f}", commit=f"{float(commitment):.3f}", norm=f"{norm:.1f}", clips=len(sounds))
        if time.monotonic() - saved_at > 120:
            save()
            saved_at = time.monotonic()
    save()


def _crop(samples: np.ndarray) -> np.ndarray:
    """A random stretch of `CONTEXT` frames, float32, silence around it where the sound is shorter."""
    length = CONTEXT * codec.FRAME
    sound = np.zeros(length + len(samples), np.float32)
    sound[length // 2 : length // 2 + len(samples)] = samples / 32768
    start = random.randrange(len(sound) - length)
    return sound[start : start + length]


if __name__ == "__main__":
    main()
