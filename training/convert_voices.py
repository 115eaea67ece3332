"""Converts clips to other voices by the WORLD vocoder, for more speakers in the training data.

Pitch, formants, aperiodicity and pace change independently, unlike by resampling, and some envelopes are smoothed in
time and frequency as in statistical speech synthesis. Writes shards `users-converted-*` in the form of `synthesize`,
and continues an incomplete run.
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
from training.recordings import split_recordings
from training.splice import Splicer

REAL = 0.65  # share of clips from recordings
CHANGES = 0.3  # share of changes in clips from recordings; share of other kinds than orders in synthetic ones
FRAME_S = 0.005  # duration of a vocoder frame


def convert_voice(draw: random.Random, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Convert a clip (int16, 16 kHz) to another voice, float32; also return the new time of each frame in seconds."""
    sound = samples.astype(np.float64) / 32768
    pitch, times = pyworld.dio(sound, INPUT_HZ, frame_period=1000 * FRAME_S)
    pitch = pyworld.stonemask(sound, pitch, times, INPUT_HZ)
    envelope = pyworld.cheaptrick(sound, pitch, times, INPUT_HZ)
    aperiodicity = pyworld.d4c(sound, pitch, times, INPUT_HZ)

    voiced = pitch > 0
    if voiced.any():
        middle = np.log(pitch[voiced]).mean()
        range_factor, shift = draw.choice((0.0, draw.uniform(0.2, 1.6))), draw.uniform(-0.4, 0.4)
        pitch[voiced] = np.clip(np.exp(middle + shift + range_factor * (np.log(pitch[voiced]) - middle)), 60, 500)
    envelope = _with_formants(np.log(envelope), draw.uniform(0.87, 1.17))
    if draw.random() < 0.5:
        envelope = gaussian_filter1d(envelope, draw.uniform(0.3, 3.5), axis=0)
        envelope = gaussian_filter1d(envelope, draw.uniform(0.3, 4), axis=1)
    aperiodicity = np.clip(aperiodicity * draw.uniform(0.3, 1.6), 0, 1)

    pace = np.repeat(np.exp([draw.gauss(0, 0.12) for _ in range(1 + len(times) // 40)]), 40)[: len(times)]
    times_out = np.concatenate([[0], np.cumsum(gaussian_filter1d(pace * draw.uniform(0.82, 1.25), 12))])[:-1]
    frames = np.interp(np.arange(times_out[-1]), times_out, np.arange(len(times))).round().astype(int)
    converted = pyworld.synthesize(
        pitch[frames], np.exp(envelope)[frames].copy(), aperiodicity[frames].copy(), INPUT_HZ, 1000 * FRAME_S
    )
    return (converted / max(1e-4, np.abs(converted).max()) * 0.7).astype(np.float32), times_out * FRAME_S


def _with_formants(envelope: np.ndarray, factor: float) -> np.ndarray:
    """Multiply the formant frequencies of log envelopes [frames, bins] by `factor`."""
    bins = np.arange(envelope.shape[1]) / factor
    return np.stack([np.interp(bins, np.arange(envelope.shape[1]), frame) for frame in envelope])


def clips_of_shard(
    number: int, splicer: Splicer, changes: Changes, real: list[Clip], synthetic: list[Clip]
) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
    """Yield audio (float32, 16 kHz) and metadata of one shard's clips, determined by the shard's number."""
    draw = random.Random(f"revoice {number}")
    others = [clip for clip in synthetic if clip.about["kind"] != "order"]
    while True:
        if is_real := draw.random() < REAL:
            is_change = draw.random() < CHANGES
            clip = changes.change(draw) if is_change else splicer.another_order(draw, draw.choice(real))
        else:
            clip = draw.choice(others if draw.random() < CHANGES else synthetic)
        samples, times_s = convert_voice(draw, clip.samples)
        about = {name: clip.about[name] for name in ("text", "kind", "slots", "removed")}
        if is_real:
            old = [t for _, *span in clip.about["words"] for t in span]
            new = np.interp(old, np.arange(len(times_s)) * FRAME_S, times_s)
            about["words"] = [
                (word, *pair)
                for (word, _, _), pair in zip(clip.about["words"], new.reshape(-1, 2).tolist(), strict=True)
            ]
            about["extent"] = (about["words"][0][1], about["words"][-1][2])
        yield samples, about


def main() -> None:
    """Run the program that the module describes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, help="folder with clips/ and words.*.jsonl")
    parser.add_argument("recordings", type=Path)
    parser.add_argument("--clips", type=int, default=2500)
    args = parser.parse_args()
    real, _ = split_recordings(args.work, args.recordings)
    synthetic = Shards(args.work / "clips", "users-[0-9]*").refresh()
    splicer = Splicer(real)
    changes = Changes(splicer)
    changes.add(Shards(args.work / "clips", "openings").refresh())

    def of_shard(shard: int) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
        return clips_of_shard(shard, splicer, changes, real, synthetic)

    write_shards(args.work / "clips", "users-converted", args.clips, of_shard)


if __name__ == "__main__":
    main()
