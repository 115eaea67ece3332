"""Aligns the words of the users' clips: writes a file with a line of JSON a clip next to each shard without one."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tqdm import tqdm

from training.alignment import Aligner
from training.clips import ALIGNMENT, read_shard, shards_of


def main() -> None:
    """Run the program that the module describes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, help="folder with clips/")
    args = parser.parse_args()
    aligner = Aligner()
    shards = shards_of(args.work / "clips", "users")
    for path in tqdm([path for path in shards if not path.with_suffix(ALIGNMENT).exists()], unit="shard"):
        alignments = [aligner.words(clip.samples, clip.about["text"]) for clip in read_shard(path)]
        path.with_suffix(ALIGNMENT).write_text("".join(json.dumps(words) + "\n" for words in alignments))


if __name__ == "__main__":
    main()
