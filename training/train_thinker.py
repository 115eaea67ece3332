"""Trains the whole thinker on spoken dialogues: `text.pt` and `hearing.pt` put together, and taught to answer."""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.acceptance import is_accepted
from training.augment import augmented, noise
from training.clips import Clip, read_clips
from training.dialogues import Dialogue, Library, Writer
from training.grammar import Utterance
from training.hearing import Ears, masked
from training.model import load_tokenizer
from training.recordings import RATE, read_recordings, split_strangers
from training.state import load, save
from training.thinker import answer_loss, make_thinker, stand_in
from training.train_hearing import cut

NOISE = Clip(np.zeros(0, np.int16), {"text": "", "kind": "noise", "slots": {}, "removed": ()})
LONGEST_ANSWER = 48  # tokens


@torch.no_grad()
def answer(thinker: Any, ears: Ears, writer: Writer, samples: np.ndarray) -> str:
    """The greedy answer to one clip, float32 at 16 kHz."""
    heard = ears([ears.mel(samples)])[0][0]
    dialogue = Dialogue()
    writer.turn(dialogue, Utterance("", "order"), samples, random.Random(0))
    ids = [*dialogue.ids, *writer.encode("<|im_start|>assistant\n")]
    place = dialogue.sounds[0][0]
    embed = thinker.get_input_embeddings()
    inputs = torch.cat([embed(torch.tensor(ids[:place])), heard, embed(torch.tensor(ids[place + 1 :]))])[None]
    said: list[int] = []
    end = writer.encode("<|im_end|>")[0]
    while len(said) < LONGEST_ANSWER:
        positions = torch.arange(inputs.shape[1]).expand(3, 1, -1)
        hidden = thinker.model(inputs_embeds=inputs, position_ids=positions).last_hidden_state
        token = int(thinker.lm_head(hidden[0, -1]).argmax())
        if token == end:
            break
        said.append(token)
        inputs = torch.cat([inputs, embed(torch.tensor([[token]]))], 1)
    return writer.decode(said)


def acceptance(thinker: Any, ears: Ears, writer: Writer, clips: list[Clip], show: int = 0) -> float:
    """Share of recordings, as they are, whose order is taken exactly."""
    ears.eval()
    right = 0
    for i, clip in enumerate(clips):
        sound = clip.samples.astype(np.float32) / 32768
        said = answer(thinker, ears, writer, sound)
        right += is_accepted(said, clip.about["slots"])
        if i < show:
            tqdm.write(f"{clip.about['text']} -> {said}")
    ears.train()
    return right / len(clips)


def main() -> None:
    """The program; see the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, help="folder with text.pt and hearing.pt, to save to and to go on from")
    parser.add_argument("recordings", type=Path)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--spoken", type=int, default=8, help="dialogues with sound in a batch")
    parser.add_argument("--written", type=int, default=4, help="dialogues without")
    parser.add_argument("--rate", type=float, default=7e-4)
    args = parser.parse_args()
    torch.manual_seed(1)
    tokenizer, path = load_tokenizer(args.work), args.work / "thinker.pt"
    thinker, writer = make_thinker(tokenizer), Writer(tokenizer)
    load(args.work / "text.pt", thinker=thinker)
    embeddings = thinker.get_input_embeddings().weight
    ears = Ears(thinker.audio_tower, embeddings, writer.audio)
    load(args.work / "hearing.pt", ears=ears)
    learned = [p for n, p in thinker.named_parameters() if p.requires_grad and not n.startswith("visual")]
    learned += [p for n, p in ears.named_parameters() if not n.startswith("encoder")]
    optimizer = torch.optim.AdamW(learned, args.rate, betas=(0.9, 0.98), weight_decay=0.02)
    step = load(path, optimizer, thinker=thinker, ears=ears)

    known, strangers = split_strangers(read_recordings(args.recordings, sorted(args.work.glob("words.*.jsonl"))))
    library, seen, synthetic = Library(), set(), []  # type: ignore[var-annotated]

    def read() -> None:
        for clip in read_clips(args.work / "clips", "users", seen):
            synthetic.append(clip)
            library.add(clip.about, clip)

    read()
    library.add(NOISE.about, NOISE)
    orders = [clip for clip in known if clip.about["text"]]
    real = Library()
    for clip in orders:
        real.add(clip.about, clip)
    both = _Both(library, real)
    print(f"{len(orders)} recordings, {len(strangers)} of strangers, {len(synthetic)} synthetic clips", flush=True)

    def sound(draw: random.Random, clip: Clip, others: list[np.ndarray]) -> Tensor:
        if clip is NOISE:
            samples = noise(draw, int(RATE * draw.uniform(0.6, 4))) * 10 ** (-draw.uniform(15, 60) / 20)
            return ears.mel(samples)
        return masked(draw, ears.mel(augmented(draw, cut(draw, clip)[0], others).samples))

    saved_at = read_at = time.monotonic()
    bar = tqdm(total=args.steps, initial=step, mininterval=10)
    while step < args.steps:
        draw = random.Random(f"thinker {step}")
        if time.monotonic() - read_at > 300:
            read()
            read_at = time.monotonic()
        for group in optimizer.param_groups:
            group["lr"] = args.rate * min(1.0, (step + 1) / 100) * 0.05 ** (step / args.steps)
        others = [clip.samples for clip in draw.sample(synthetic, 20)]
        spoken = [writer.write(draw, both, draw.choice((1, 1, 1, 2, 2, 3)), audio=0.85) for _ in range(args.spoken)]
        clips = [clip for dialogue in spoken for _, clip in dialogue.sounds]
        tokens, hidden = ears([sound(draw, clip, others) for clip in clips])
        rest = iter(tokens)
        heard = [[next(rest) for _ in dialogue.sounds] for dialogue in spoken]
        written = [writer.write(draw, None, draw.randint(1, 5), audio=0.4) for _ in range(args.written)]
        stand_ins = [
            [stand_in(writer.spoken(said.text), embeddings, writer.audio, draw) for _, said in d.sounds]
            for d in written
        ]
        loss, right = answer_loss(thinker, writer, spoken, heard)
        text_loss, _ = answer_loss(thinker, writer, written, stand_ins)
        texts = [clip.about["text"] for clip in clips]
        words = ears.loss(tokens, hidden, [writer.spoken(text) if text else [] for text in texts], texts)
        (loss + 0.5 * text_loss + 0.2 * words).backward()
        nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        bar.update()
        bar.set_postfix(
            loss=f"{float(loss):.3f}", right=f"{right:.3f}", text=f"{float(text_loss):.3f}", words=f"{float(words):.2f}"
        )
        if time.monotonic() - saved_at > 400 or step == args.steps:
            save(path, step, optimizer, thinker=thinker, ears=ears)
            score = acceptance(thinker, ears, writer, strangers, show=4)
            tqdm.write(json.dumps({"step": step, "strangers accepted": round(score, 3)}))
            saved_at = time.monotonic()


class _Both(Library):
    """Synthetic clips, and for half of the orders real ones."""

    def __init__(self, synthetic: Library, real: Library):
        self._synthetic, self._real = synthetic, real
        self.by_kind = synthetic.by_kind

    def draw(self, draw: random.Random, kind: str) -> tuple[Utterance, Any] | None:
        source = self._real if kind == "order" and draw.random() < 0.5 else self._synthetic
        return source.draw(draw, kind)


if __name__ == "__main__":
    main()
