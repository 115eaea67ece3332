"""Trains the whole thinker on spoken dialogues: `text.pt` and `hearing.pt` put together, and taught to answer."""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.acceptance import is_accepted
from config.settings import INPUT_HZ
from training.augment import noise
from training.changes import Changes
from training.clips import Clip, Shards
from training.dialogues import Dialogue, Library, Writer, place_sounds, utterance_of
from training.grammar import Utterance
from training.hearing import Ears
from training.model import load_tokenizer
from training.recordings import known_and_strangers
from training.run import Run, load
from training.splice import Splicer
from training.thinker import answer_loss, averaged, make_thinker, stand_ins
from training.train_hearing import hear

NOISE = Clip(np.zeros(0, np.int16), {"text": "", "kind": "noise", "slots": {}, "removed": ()})
LONGEST_ANSWER = 48  # tokens


@torch.no_grad()
def answer(thinker: Any, ears: Ears, writer: Writer, samples: np.ndarray) -> str:
    """The greedy answer to one clip, float32 at 16 kHz."""
    mel, end = ears.mel(samples), writer.encode("<|im_end|>")[0]
    dialogue = Dialogue()
    writer.turn(dialogue, Utterance("", "order"), samples, random.Random(0))
    ids, _, _ = place_sounds(dialogue, [ears.count(mel)], writer.audio)
    prompt = torch.tensor([[*ids, *writer.encode("<|im_start|>assistant\n")]])
    said = thinker.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        input_features=mel[None],
        feature_attention_mask=torch.ones(1, mel.shape[1], dtype=torch.long),
        max_new_tokens=LONGEST_ANSWER,
        do_sample=False,
        eos_token_id=end,
        pad_token_id=end,
    )[0, prompt.shape[1] :].tolist()
    return writer.decode(said[: said.index(end)] if end in said else said)


def acceptance(thinker: Any, ears: Ears, writer: Writer, clips: list[Clip]) -> float:
    """Share of recordings, as they are, whose order is taken exactly."""
    ears.eval(), thinker.eval()
    answers = [answer(thinker, ears, writer, clip.samples.astype(np.float32) / 32768) for clip in clips]
    ears.train(), thinker.train()
    return sum(is_accepted(said, clip.about["slots"]) for said, clip in zip(answers, clips, strict=True)) / len(clips)


def main() -> None:
    """The program; see the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, help="folder with text.pt and hearing.pt, to save to and to go on from")
    parser.add_argument("recordings", type=Path)
    parser.add_argument("--steps", type=int, default=10000)
    parser.add_argument("--spoken", type=int, default=8, help="dialogues with sound in a batch")
    parser.add_argument("--written", type=int, default=4, help="dialogues without")
    parser.add_argument("--rate", type=float, default=7e-4)
    args = parser.parse_args()
    torch.manual_seed(1)
    tokenizer = load_tokenizer(args.work)
    thinker, writer = make_thinker(tokenizer), Writer(tokenizer)
    load(args.work / "text.pt", thinker=thinker)
    average = averaged(thinker)
    embeddings = thinker.get_input_embeddings().weight
    ears = Ears(thinker.audio_tower, embeddings, writer.audio)
    load(args.work / "hearing.pt", ears=ears)
    learned = [p for n, p in thinker.named_parameters() if p.requires_grad and not n.startswith("visual")]
    learned += [p for n, p in ears.named_parameters() if not n.startswith("encoder")]
    path = args.work / "thinker.pt"
    saved = {"thinker": thinker, "ears": ears, "average": average}
    run = Run(path, learned, args.steps, args.rate, warm_up=100, save_s=400, **saved)

    known, strangers = known_and_strangers(args.work, args.recordings)
    synthetic, library = Shards(args.work / "clips", "users"), Library()
    library.add(NOISE.about, NOISE)
    openings = Shards(args.work / "clips", "openings")
    splicer = Splicer(known)
    changes = Changes(splicer)
    both = _Both(library, known, splicer, changes)

    def sound(draw: random.Random, clip: Clip, others: list[np.ndarray]) -> Tensor:
        if clip is NOISE:
            samples = noise(draw, int(INPUT_HZ * draw.uniform(0.6, 6))) * 10 ** (-draw.uniform(15, 60) / 20)
            return ears.mel(samples)
        return hear(ears, writer, draw, clip, others, 1.0)[0]

    for step in run:
        for clip in synthetic.refresh():
            library.add(clip.about, clip)
        changes.add(openings.refresh())
        draw = random.Random(f"thinker {step}")
        others = [clip.samples for clip in draw.sample(synthetic.clips, 20)]
        spoken = [writer.write(draw, both, draw.choice((1, 1, 2, 2, 3, 4)), audio=0.85) for _ in range(args.spoken)]
        clips = [clip for dialogue in spoken for _, clip in dialogue.sounds]
        tokens, hidden = ears([sound(draw, clip, others) for clip in clips])
        rest = iter(tokens)
        heard = [[next(rest) for _ in dialogue.sounds] for dialogue in spoken]
        written = [writer.write(draw, None, draw.randint(1, 5), audio=0.4) for _ in range(args.written)]
        loss, right = answer_loss(thinker, writer, spoken, heard)
        text_loss, _ = answer_loss(thinker, writer, written, stand_ins(writer, embeddings, written, draw))
        texts = [clip.about["text"] for clip in clips]
        words = ears.loss(tokens, hidden, [writer.spoken(text) for text in texts], texts)
        average.update_parameters(thinker)
        if run.learn(loss + text_loss + 0.2 * words, loss=loss, right=right, text=text_loss, words=words):
            run.tell(f"orders of strangers taken: {acceptance(average.module, ears, writer, strangers):.1%}")


class _Both(Library):
    """Synthetic clips, and for half of the orders and changes real ones, with other slots than were recorded."""

    def __init__(self, synthetic: Library, real: list[Clip], splicer: Splicer, changes: Changes):
        self._synthetic, self._real, self._splicer, self._changes = synthetic, real, splicer, changes
        self.by_kind = synthetic.by_kind

    def draw(self, draw: random.Random, kind: str) -> tuple[Utterance, Any] | None:
        if kind not in ("order", "change", "size", "roast") or draw.random() < 0.5:
            return self._synthetic.draw(draw, kind)
        if kind == "order":
            clip = self._splicer.another_order(draw, draw.choice(self._real))
        else:
            clip = self._changes.change(draw)
        return utterance_of(clip.about), clip


if __name__ == "__main__":
    main()
