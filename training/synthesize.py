"""Synthesizes the training audio: the barista's sentences by one voice, users' sentences and openings by many.

Writes shards of clips and continues an incomplete run.
`python -m training.synthesize users FOLDER --clips 2000`, `python -m training.synthesize barista FOLDER --clips 800`.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from training import grammar, voices
from training.clips import write_shards
from training.orders import SLOTS
from training.steady_voice import SteadyVoice

VOICE, STYLE = "af_heart", 60  # voice of Kokoro, and the length in phonemes whose style vector is used
MODEL_SENTENCES = 160  # sentences that each word's duration and contour are averaged over
KINDS = {  # kinds of users' utterances, with their weights
    "order": 58, "another": 4, "change": 14, "size": 3, "roast": 2, "query": 3, "cancel": 2, "done": 3, "hello": 1.5,
    "who": 1, "menu": 1, "hear": 1, "thanks": 1.5, "bye": 1, "other": 6,
}  # fmt: skip


def barista_sentences(draw: random.Random) -> Iterator[str]:
    """Yield different answers of random dialogues; long ones are rarer."""
    seen: set[str] = set()
    while True:
        barista = grammar.Barista()
        for _ in range(draw.randrange(1, 6)):
            answer = barista.answer(grammar.utterance(draw, grammar.next_kind(draw, barista)))
            is_fixed = barista.order is None or barista.order.phrase() not in answer  # occurs in every shard
            if answer and answer not in seen and len(answer.split()) <= 26 and not (is_fixed and draw.random() < 0.85):
                seen.add(answer)
                yield answer


@cache
def barista(styles: Path) -> SteadyVoice:
    """Return the barista's voice."""
    texts = itertools.islice(barista_sentences(random.Random(0)), MODEL_SENTENCES)
    return SteadyVoice(styles, VOICE, STYLE, list(texts))


def barista_clips(styles: Path, seed: int) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
    """Yield audio (float32, 24 kHz) and text of the barista's sentences, and the begin of each word in seconds.

    `starts` is missing if the voice speaks two words as one.
    """
    for text in barista_sentences(random.Random(seed)):
        samples, starts = barista(styles).speak(text)
        timed = {"starts": starts} if len(starts) == len(text.split()) else {}
        yield samples, {"text": text, **timed}


def user_clips(styles: Path, seed: int) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
    """Yield audio (float32, 16 kHz), text and meaning of users' utterances; six of ten are orders."""
    draw = random.Random(seed)
    speakers = voices.SpeakerPool(styles, draw)
    while True:
        kind = draw.choices(tuple(KINDS), weights=tuple(KINDS.values()))[0]
        utterance = grammar.utterance(draw, kind)
        samples, speaker = speakers.speak(utterance.text)
        yield samples, {**dataclasses.asdict(utterance), "speaker": speaker}


def opening_clips(styles: Path, seed: int) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
    """Yield audio (float32, 16 kHz) and text of the beginnings of changes."""
    draw = random.Random(f"openings {seed}")
    speakers = voices.SpeakerPool(styles, draw)
    texts = sorted({text for slot in SLOTS for text in grammar.openings(slot)})
    while True:
        text = draw.choice(texts)
        samples, speaker = speakers.speak(text)
        yield _without_silence(samples), {"text": text, "kind": "opening", "speaker": speaker}


def _without_silence(samples: np.ndarray) -> np.ndarray:
    """Trim the samples before the first and after the last that exceeds a fiftieth of the maximum."""
    loud = np.flatnonzero(np.abs(samples) > np.abs(samples).max() / 50)
    return samples[loud[0] : loud[-1] + 1]


MAKERS = {"barista": barista_clips, "users": user_clips, "openings": opening_clips}


def main() -> None:
    """Run the program that the module describes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=tuple(MAKERS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--styles", type=Path, required=True, help="folder `voices` of the npm package kokoro-js")
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    make = MAKERS[args.what]

    def of_shard(shard: int) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
        return make(args.styles, args.seed * 100_000 + shard)  # a shard's clips depend on its number only

    write_shards(args.folder, f"{args.what}-{args.seed}", args.clips, of_shard)


if __name__ == "__main__":
    main()
