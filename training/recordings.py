"""The real orders: sound, words and slots; and a split in which whole clusters of speakers are held back.

The files carry no speakers' names. Recordings are clustered by the mean and the deviation of their log-mel bands, which
tell a voice and its microphone apart.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from transformers import WhisperFeatureExtractor

from benchmarks.acceptance import plain
from client.sound import read_sound
from config.settings import INPUT_HZ
from training.clips import Clip

CLUSTERS, HELD_BACK = 40, 72  # clusters of speakers; recordings that are held back, at least


def known_and_strangers(work: Path, folder: Path) -> tuple[list[Clip], list[Clip]]:
    """The recordings of `folder` whose words were found: to learn from, and those of speakers that are held back."""
    known, strangers = split_strangers(read_recordings(folder, sorted(work.glob("words.*.jsonl"))))
    return [clip for clip in known if clip.about["text"]], [clip for clip in strangers if clip.about["text"]]


def read_recordings(folder: Path, words: list[Path]) -> list[Clip]:
    """Every recording with its words: the sound (int16, 16 kHz), and `about` with text, slots and the words' extent."""
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
            "slots": {slot: plain(value) for slot, value in entry["label"].items()},
            "removed": (),
            "extent": extent,
            "words": [tuple(word) for word in entry["words"]],
        }
        clips.append(Clip((samples * 32767).astype(np.int16), about))
    return clips


def split_strangers(clips: list[Clip]) -> tuple[list[Clip], list[Clip]]:
    """Recordings to learn from, and those of speakers that are held back."""
    extractor = WhisperFeatureExtractor(feature_size=128)
    described = []
    for clip in clips:
        mel = extractor(clip.samples / 32768, sampling_rate=INPUT_HZ, padding="do_not_pad", return_tensors="np")[
            "input_features"
        ][0]
        speech = mel[:, mel.mean(0) > np.median(mel.mean(0))]
        described.append(np.concatenate([speech.mean(1) - speech.mean(), speech.std(1)]))
    points = np.stack(described)
    points = (points - points.mean(0)) / points.std(0)
    _, _, axes = np.linalg.svd(points, full_matrices=False)
    clusters = fcluster(linkage(points @ axes[:24].T, "ward"), CLUSTERS, "maxclust")
    held: set[int] = set()
    for cluster in np.random.RandomState(1).permutation(np.unique(clusters)):
        if sum(int((clusters == c).sum()) for c in held) < HELD_BACK:
            held.add(int(cluster))
    known = [clip for clip, cluster in zip(clips, clusters, strict=True) if cluster not in held]
    return known, [clip for clip, cluster in zip(clips, clusters, strict=True) if cluster in held]
