"""Recordings of orders: audio, words and slots; and a split that holds out whole clusters of speakers.

The files have no speaker names. Recordings are clustered by mean and standard deviation of their log-mel bands, which
distinguish voices and microphones.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from transformers import WhisperFeatureExtractor

from client.sound import read_sound
from config.settings import INPUT_HZ
from training.clips import Clip
from training.judges.acceptance import normalize

CLUSTERS, MIN_HELD_OUT = 40, 72  # clusters of speakers; held-out recordings


def split_recordings(work: Path, folder: Path) -> tuple[list[Clip], list[Clip]]:
    """Return the training set and the held-out set of the recordings in `folder` with known words."""
    train, held_out = split_speakers(read_recordings(folder, sorted(work.glob("words.*.jsonl"))))
    return [clip for clip in train if clip.about["text"]], [clip for clip in held_out if clip.about["text"]]


def read_recordings(folder: Path, words: list[Path]) -> list[Clip]:
    """Read every recording: audio (int16, 16 kHz), and `about` with text, slots, words and the words' extent."""
    clips = []
    for line in sorted(line for path in words for line in path.read_text().splitlines()):
        entry: dict[str, Any] = json.loads(line)
        samples = read_sound(folder / entry["file"])
        samples = samples / max(1e-4, np.abs(samples).max()) * 0.7
        extent = (entry["words"][0][1], entry["words"][-1][2]) if entry["words"] else (0.0, len(samples) / INPUT_HZ)
        about = {
            "file": entry["file"],
            "text": " ".join(word for word, _, _ in entry["words"]),
            "kind": "order",
            "slots": {slot: normalize(value) for slot, value in entry["label"].items()},
            "removed": (),
            "extent": extent,
            "words": [tuple(word) for word in entry["words"]],
        }
        clips.append(Clip((samples * 32767).astype(np.int16), about))
    return clips


def split_speakers(clips: list[Clip]) -> tuple[list[Clip], list[Clip]]:
    """Split recordings into a training set and a held-out set without common clusters of speakers."""
    extractor = WhisperFeatureExtractor(feature_size=128)
    features = []
    for clip in clips:
        mel = extractor(clip.samples / 32768, sampling_rate=INPUT_HZ, padding="do_not_pad", return_tensors="np")[
            "input_features"
        ][0]
        speech = mel[:, mel.mean(0) > np.median(mel.mean(0))]
        features.append(np.concatenate([speech.mean(1) - speech.mean(), speech.std(1)]))
    points = np.stack(features)
    points = (points - points.mean(0)) / points.std(0)
    _, _, axes = np.linalg.svd(points, full_matrices=False)
    clusters = fcluster(linkage(points @ axes[:24].T, "ward"), CLUSTERS, "maxclust")
    held_out: set[int] = set()
    for cluster in np.random.RandomState(1).permutation(np.unique(clusters)):
        if sum(int((clusters == c).sum()) for c in held_out) < MIN_HELD_OUT:
            held_out.add(int(cluster))
    train = [clip for clip, cluster in zip(clips, clusters, strict=True) if cluster not in held_out]
    return train, [clip for clip, cluster in zip(clips, clusters, strict=True) if cluster in held_out]
