"""Other people out of those that there are: clips taken apart by the WORLD vocoder and spoken anew by another throat.

A recording's melody, its formants, its breath and its pace each change by themselves, which resampling cannot do, and
some envelopes are smoothed in time and frequency as statistical speech synthesis smooths them. Writes shards
`users-revoiced-*`, as `synthesize` does, and goes on where it stopped.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyworld
from scipy.ndimage import gaussian_filter1d

from config.settings import INPUT_HZ
from training.changes import Changes
from training.clips import Clip, Shards, write_shards
from training.recordings import known_and_strangers
from training.splice import Splicer

REAL = 0.65  # share of clips whose voice was a real one
CHANGES = 0.3  # share of the real ones that are changes, and of the others that are no orders
FRAME_S = 0.005  # of the vocoder


def revoiced(draw: random.Random, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A clip (int16, 16 kHz) by another throat, float32; and when its moments, 5 ms apart, are now, in seconds."""
    sound = samples.astype(np.float64) / 32768
    pitch, times = pyworld.dio(sound, INPUT_HZ, frame_period=1000 * FRAME_S)
    pitch = pyworld.stonemask(sound, pitch, times, INPUT_HZ)
    envelope = pyworld.cheaptrick(sound, pitch, times, INPUT_HZ)
    breath = pyworld.d4c(sound, pitch, times, INPUT_HZ)

    voiced = pitch > 0
    if voiced.any():
        middle = np.log(pitch[voiced]).mean()
        liveliness, shift = draw.choice((0.0, draw.uniform(0.2, 1.6))), draw.uniform(-0.4, 0.4)
        pitch[voiced] = np.clip(np.exp(middle + shift + liveliness * (np.log(pitch[voiced]) - middle)), 60, 500)
    envelope = _with_formants(np.log(envelope), draw.uniform(0.87, 1.17))
    if draw.random() < 0.5:
        envelope = gaussian_filter1d(envelope, draw.uniform(0.3, 3.5), axis=0)
        envelope = gaussian_filter1d(envelope, draw.uniform(0.3, 4), axis=1)
    breath = np.clip(breath * draw.uniform(0.3, 1.6), 0, 1)

    pace = np.repeat(np.exp([draw.gauss(0, 0.12) for _ in range(1 + len(times) // 40)]), 40)[: len(times)]
    moments = np.concatenate([[0], np.cumsum(gaussian_filter1d(pace * draw.uniform(0.82, 1.25), 12))])[:-1]
    taken = np.interp(np.arange(moments[-1]), moments, np.arange(len(times))).round().astype(int)
    spoken = pyworld.synthesize(
        pitch[taken], np.exp(envelope)[taken].copy(), breath[taken].copy(), INPUT_HZ, 1000 * FRAME_S
    )
    return (spoken / max(1e-4, np.abs(spoken).max()) * 0.7).astype(np.float32), moments * FRAME_S


def _with_formants(envelope: np.ndarray, factor: float) -> np.ndarray:
    """Log envelopes [frames, bins] whose formants are at `factor` times their frequency."""
    bins = np.arange(envelope.shape[1]) / factor
    return np.stack([np.interp(bins, np.arange(envelope.shape[1]), frame) for frame in envelope])


def clips_of_shard(
    number: int, splicer: Splicer, changes: Changes, real: list[Clip], synthetic: list[Clip]
) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
    """Sound (float32, 16 kHz) and meaning of one shard's clips, which follow from its number alone."""
    draw = random.Random(f"revoice {number}")
    others = [clip for clip in synthetic if clip.about["kind"] != "order"]
    while True:
        if is_real := draw.random() < REAL:
            is_change = draw.random() < CHANGES
            clip = changes.change(draw) if is_change else splicer.another_order(draw, draw.choice(real))
        else:
            clip = draw.choice(others if draw.random() < CHANGES else synthetic)
        samples, moments = revoiced(draw, clip.samples)
        about = {name: clip.about[name] for name in ("text", "kind", "slots", "removed")}
        if is_real:
            now = np.interp(
                [t for _, *times in clip.about["words"] for t in times], np.arange(len(moments)) * FRAME_S, moments
            )
            about["words"] = [
                (word, *pair)
                for (word, _, _), pair in zip(clip.about["words"], now.reshape(-1, 2).tolist(), strict=True)
            ]
            about["extent"] = (about["words"][0][1], about["words"][-1][2])
        yield samples, about


def main() -> None:
    """The program; see the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, help="folder with clips/ and words.*.jsonl")
    parser.add_argument("recordings", type=Path)
    parser.add_argument("--clips", type=int, default=2500)
    args = parser.parse_args()
    real, _ = known_and_strangers(args.work, args.recordings)
    synthetic = Shards(args.work / "clips", "users-[0-9]*").refresh()
    splicer = Splicer(real)
    changes = Changes(splicer)
    changes.add(Shards(args.work / "clips", "openings").refresh())

    def of_shard(shard: int) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
        return clips_of_shard(shard, splicer, changes, real, synthetic)

    write_shards(args.work / "clips", "users-revoiced", args.clips, of_shard)


if __name__ == "__main__":
    main()
