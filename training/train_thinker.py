"""Trains the whole thinker on spoken dialogues, starting from `text.pt` and `speech_encoder.pt`."""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from config.settings import INPUT_HZ
from training.augment import noise
from training.changes import Changes
from training.clips import Clip, Shards
from training.dialogues import ClipLibrary, Dialogue, Writer, place_audio, utterance_of
from training.grammar import Utterance
from training.judges.acceptance import is_accepted
from training.model import load_tokenizer
from training.recordings import split_recordings
from training.run import Run, load
from training.speech_encoder import CtcEncoder
from training.splice import Splicer
from training.thinker import answer_loss, averaged, make_thinker, simulate_audio
from training.train_speech_encoder import prepare

NOISE = Clip(np.zeros(0, np.int16), {"text": "", "kind": "noise", "slots": {}, "removed": ()})
MAX_ANSWER_TOKENS = 48


@torch.no_grad()
def answer(thinker: Any, encoder: CtcEncoder, writer: Writer, samples: np.ndarray) -> str:
    """Generate the greedy answer to one clip, float32 at 16 kHz."""
    mel, end = encoder.mel(samples), writer.encode("<|im_end|>")[0]
    dialogue = Dialogue()
    writer.turn(dialogue, Utterance("", "order"), samples, random.Random(0))
    ids, _, _ = place_audio(dialogue, [encoder.count(mel)], writer.audio_id)
    prompt = torch.tensor([[*ids, *writer.encode("<|im_start|>assistant\n")]])
    tokens = thinker.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        input_features=mel[None],
        feature_attention_mask=torch.ones(1, mel.shape[1], dtype=torch.long),
        max_new_tokens=MAX_ANSWER_TOKENS,
        do_sample=False,
        eos_token_id=end,
        pad_token_id=end,
    )[0, prompt.shape[1] :].tolist()
    return writer.decode(tokens[: tokens.index(end)] if end in tokens else tokens)


def acceptance(thinker: Any, encoder: CtcEncoder, writer: Writer, clips: list[Clip]) -> float:
    """Return the share of accepted orders, of recordings without augmentation."""
    encoder.eval(), thinker.eval()
    answers = [answer(thinker, encoder, writer, clip.samples.astype(np.float32) / 32768) for clip in clips]
    encoder.train(), thinker.train()
    return sum(is_accepted(text, clip.about["slots"]) for text, clip in zip(answers, clips, strict=True)) / len(clips)


def main() -> None:
    """Run the program that the module describes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, help="folder with text.pt and speech_encoder.pt, where the state is saved")
    parser.add_argument("recordings", type=Path)
    parser.add_argument("--steps", type=int, default=10000)
    parser.add_argument("--spoken", type=int, default=8, help="dialogues with audio in a batch")
    parser.add_argument("--written", type=int, default=4, help="dialogues without audio in a batch")
    parser.add_argument("--rate", type=float, default=7e-4)
    args = parser.parse_args()
    torch.manual_seed(1)
    tokenizer = load_tokenizer(args.work)
    thinker, writer = make_thinker(tokenizer), Writer(tokenizer)
    load(args.work / "text.pt", thinker=thinker)
    average = averaged(thinker)
    embeddings = thinker.get_input_embeddings().weight
    encoder = CtcEncoder(thinker.audio_tower, embeddings, writer.audio_id)
    load(args.work / "speech_encoder.pt", encoder=encoder)
    learned = [p for n, p in thinker.named_parameters() if p.requires_grad and not n.startswith("visual")]
    learned += [p for n, p in encoder.named_parameters() if not n.startswith("encoder")]
    path = args.work / "thinker.pt"
    saved = {"thinker": thinker, "encoder": encoder, "average": average}
    run = Run(path, learned, args.steps, args.rate, warm_up=100, save_s=400, **saved)

    recorded, held_out = split_recordings(args.work, args.recordings)
    synthetic, library = Shards(args.work / "clips", "users"), ClipLibrary()
    library.add(NOISE.about, NOISE)
    openings = Shards(args.work / "clips", "openings")
    splicer = Splicer(recorded)
    changes = Changes(splicer)
    mixed = _MixedLibrary(library, recorded, splicer, changes)

    def log_mel(draw: random.Random, clip: Clip, others: list[np.ndarray]) -> Tensor:
        if clip is NOISE:
            samples = noise(draw, int(INPUT_HZ * draw.uniform(0.6, 6))) * 10 ** (-draw.uniform(15, 60) / 20)
            return encoder.mel(samples)
        return prepare(encoder, writer, draw, clip, others, 1.0)[0]

    for step in run:
        for clip in synthetic.refresh():
            library.add(clip.about, clip)
        changes.add(openings.refresh())
        draw = random.Random(f"thinker {step}")
        others = [clip.samples for clip in draw.sample(synthetic.clips, 20)]
        spoken = [writer.write(draw, mixed, draw.choice((1, 1, 2, 2, 3, 4)), spoken=0.85) for _ in range(args.spoken)]
        clips = [clip for dialogue in spoken for _, clip in dialogue.audio]
        tokens, hidden = encoder([log_mel(draw, clip, others) for clip in clips])
        remaining = iter(tokens)
        audio = [[next(remaining) for _ in dialogue.audio] for dialogue in spoken]
        written = [writer.write(draw, None, draw.randint(1, 5), spoken=0.4) for _ in range(args.written)]
        loss, accuracy = answer_loss(thinker, writer, spoken, audio)
        text_loss, _ = answer_loss(thinker, writer, written, simulate_audio(writer, embeddings, written, draw))
        texts = [clip.about["text"] for clip in clips]
        words = encoder.loss(tokens, hidden, [writer.encode_speech(text) for text in texts], texts)
        average.update_parameters(thinker)
        if run.learn(loss + text_loss + 0.2 * words, loss=loss, accuracy=accuracy, text=text_loss, words=words):
            run.log(
                f"accepted orders of held-out speakers: {acceptance(average.module, encoder, writer, held_out):.1%}"
            )


class _MixedLibrary(ClipLibrary):
    """Synthetic clips, and spliced recordings for half of the orders and changes."""

    def __init__(self, synthetic: ClipLibrary, recorded: list[Clip], splicer: Splicer, changes: Changes):
        self._synthetic, self._recorded, self._splicer, self._changes = synthetic, recorded, splicer, changes
        self.by_kind = synthetic.by_kind

    def draw(self, draw: random.Random, kind: str) -> tuple[Utterance, Any] | None:
        if kind not in ("order", "change", "size", "roast") or draw.random() < 0.5:
            return self._synthetic.draw(draw, kind)
        if kind == "order":
            clip = self._splicer.another_order(draw, draw.choice(self._recorded))
        else:
            clip = self._changes.change(draw)
        return utterance_of(clip.about), clip


if __name__ == "__main__":
    main()
