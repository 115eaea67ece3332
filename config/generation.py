"""A checkpoint's own sampling defaults, from its generation_config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from config.loader import SettingsError

FILE = "generation_config.json"
SAMPLING = {  # a name of transformers, or of Qwen's files, and the setting that it stands for
    "temperature": "text_temperature",
    "top_k": "text_top_k",
    "top_p": "text_top_p",
    "talker_temperature": "temperature",
    "talker_top_k": "top_k",
    "talker_top_p": "top_p",
    "talker_repetition_penalty": "repetition_penalty",
}


def sampling_of(folder: Path) -> dict[str, Any]:
    """The section [sampling] as far as the checkpoint in `folder` says; `do_sample` false is a text temperature of 0.

    Raises `SettingsError` for a file that is not JSON.
    """
    file = folder / FILE
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SettingsError(f"{file} is not JSON: {error}") from error
    sampling = {setting: found[name] for name, setting in SAMPLING.items() if found.get(name) is not None}
    for name, setting in (("do_sample", "text_temperature"), ("talker_do_sample", "temperature")):
        if found.get(name) is False:
            sampling[setting] = 0.0
    return sampling
