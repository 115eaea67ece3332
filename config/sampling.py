"""The section [sampling], and the defaults for it in a checkpoint's generation_config.json."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config.loader import SettingsError, expect

FILE = "generation_config.json"
SETTING_OF = {  # name in transformers, or in Qwen's files, to the name of the setting
    "temperature": "text_temperature",
    "top_k": "text_top_k",
    "top_p": "text_top_p",
    "talker_temperature": "temperature",
    "talker_top_k": "top_k",
    "talker_top_p": "top_p",
    "talker_repetition_penalty": "repetition_penalty",
}


@dataclass(frozen=True)
class SamplingSettings:
    """Parameters of drawing tokens and codes; the options of a conversation override each of them."""

    text_temperature: float
    text_top_k: int
    text_top_p: float
    temperature: float
    top_k: int
    top_p: float
    repetition_penalty: float

    def __post_init__(self) -> None:
        for name in ("text_temperature", "temperature"):
            expect(0 <= getattr(self, name) <= 5, f"sampling.{name}", getattr(self, name), "a number from 0 to 5")
        for name in ("text_top_k", "top_k"):
            expect(0 <= getattr(self, name) < 2**31, f"sampling.{name}", getattr(self, name), "a whole number from 0")
        for name in ("text_top_p", "top_p"):
            value = getattr(self, name)
            expect(0 < value <= 1, f"sampling.{name}", value, "a number above 0 and up to 1")
        penalty = self.repetition_penalty
        expect(1 <= penalty <= 5, "sampling.repetition_penalty", penalty, "a number from 1 to 5")


def checkpoint_sampling(folder: Path) -> dict[str, Any]:
    """Return the values of [sampling] that the checkpoint in `folder` sets; `do_sample` false is a temperature of 0.

    A `top_k` of -1 is all, as in vLLM: 0. Raises `SettingsError` for a file that is not a JSON object.
    """
    file = folder / FILE
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"{file} is not JSON: {error}; download it again") from error
    if not isinstance(found, dict):
        raise SettingsError(f"{file}: expected a JSON object, got {type(found).__name__}")
    sampling = {setting: found[name] for name, setting in SETTING_OF.items() if found.get(name) is not None}
    for setting in ("text_top_k", "top_k"):
        if sampling.get(setting) == -1:
            sampling[setting] = 0
    for name, setting in (("do_sample", "text_temperature"), ("talker_do_sample", "temperature")):
        if found.get(name) is False:
            sampling[setting] = 0.0
    return sampling
