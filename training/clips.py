"""Clips on disk: shards `NAME-0007.npz` with int16 samples and a line of JSON a clip."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

SHARD = 25  # clips in a shard
REFRESH_S = 120  # time between two searches for new shards
ALIGNMENT = ".align.jsonl"  # suffix of the file with the words of a shard's clips


@dataclass(frozen=True, slots=True)
class Clip:
    """Audio (int16, mono) and its metadata."""

    samples: np.ndarray
    about: dict[str, Any]


class Shards:
    """The clips of the shards `what-*.npz` of a folder, to which other processes may add shards."""

    def __init__(self, folder: Path, what: str):
        self._folder, self._what = folder, what
        self._read: set[str] = set()
        self._refreshed_at = -float("inf")
        self.clips: list[Clip] = []

    def refresh(self) -> list[Clip]:
        """Read new shards, at most every REFRESH_S seconds; return the new clips."""
        if time.monotonic() - self._refreshed_at < REFRESH_S:
            return []
        self._refreshed_at = time.monotonic()
        unread = [path for path in shards_of(self._folder, self._what) if path.name not in self._read]
        self._read.update(path.name for path in unread)
        new = [clip for path in unread for clip in read_shard(path)]
        self.clips += new
        return new


def shards_of(folder: Path, what: str) -> list[Path]:
    """Return the complete shards."""
    return sorted(path for path in folder.glob(f"{what}-*.npz") if not path.name.endswith(".tmp.npz"))


def read_shard(path: Path) -> list[Clip]:
    """Return the clips of one shard; if they were aligned, `about` has their words with begin and end in seconds."""
    with np.load(path) as shard:
        clips = [Clip(shard[str(i)], json.loads(str(line))) for i, line in enumerate(shard["meta"])]
    if path.with_suffix(ALIGNMENT).exists():
        lines = path.with_suffix(ALIGNMENT).read_text().splitlines()
        for clip, line in zip(clips, lines, strict=True):
            clip.about["words"] = json.loads(line)
    return clips


def write_shards(
    folder: Path, name: str, clips: int, make: Callable[[int], Iterator[tuple[np.ndarray, dict[str, Any]]]]
) -> None:
    """Write the missing shards of `clips` clips; `make` yields the clips (float32) of the shard with a number."""
    folder.mkdir(parents=True, exist_ok=True)
    done = len(list(folder.glob(f"{name}-[0-9][0-9][0-9][0-9].npz")))
    for shard in tqdm(range(done, (clips + SHARD - 1) // SHARD), initial=done, unit="shard"):
        arrays: dict[str, Any] = {}
        lines = []
        for i, (samples, about) in zip(range(SHARD), make(shard), strict=False):
            arrays[str(i)] = (np.clip(samples, -1, 1) * 32767).astype(np.int16)
            lines.append(json.dumps(about))
        path = folder / f"{name}-{shard:04d}.npz"
        np.savez(path.with_suffix(".tmp.npz"), meta=np.array(lines), **arrays)
        path.with_suffix(".tmp.npz").replace(path)
