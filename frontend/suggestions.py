"""What a user may try to say: a checkpoint made for one purpose brings its own sentences."""

from __future__ import annotations

import json

from config import Settings

FILE = "suggestions.json"  # in the checkpoint's folder: a list of sentences


def suggestions(settings: Settings) -> list[str]:
    """The sentences of the checkpoint's folder; none where the bridge has no such folder, or it has no such file."""
    folder = settings.qwen.folder
    if folder is None or not (folder / FILE).is_file():
        return []
    sentences = json.loads((folder / FILE).read_text(encoding="utf-8"))
    return [str(sentence) for sentence in sentences]
