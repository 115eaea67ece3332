"""Reads the clips that `synthesize` wrote."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ALIGNMENT = ".align.jsonl"  # beside a shard: the words of its clips


@dataclass(frozen=True, slots=True)
class Clip:
    """Sound (int16, mono) and what is known of it."""

    samples: np.ndarray
    about: dict[str, Any]


def read_clips(folder: Path, what: str, skip: set[str] | None = None) -> list[Clip]:
    """All clips of the shards `what-*.npz` that are complete; names read are added to `skip`."""
    skip = skip if skip is not None else set()
    clips = []
    for path in sorted(folder.glob(f"{what}-*.npz")):
        if path.name in skip or path.name.endswith(".tmp.npz"):
            continue
        skip.add(path.name)
        clips += read_shard(path)
    return clips


def read_shard(path: Path) -> list[Clip]:
    """The clips of one shard; `about` has their words with start and end in seconds where they were aligned."""
    with np.load(path) as shard:
        clips = [Clip(shard[str(i)], json.loads(str(line))) for i, line in enumerate(shard["meta"])]
    if path.with_suffix(ALIGNMENT).exists():
        lines = path.with_suffix(ALIGNMENT).read_text().splitlines()
        for clip, line in zip(clips, lines, strict=True):
            clip.about["words"] = json.loads(line)
    return clips
