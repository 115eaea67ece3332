"""What a client may choose for a conversation, as request parameters on its START request."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from config.settings import OPTIONS, EngineSettings, SamplingSettings, SettingsError
from engine.errors import OptionError

MAX_SEED = 2**63 - 1


@dataclass(frozen=True)
class Options:
    """The choices of one conversation."""

    voice: str
    system_prompt: str
    sampling: SamplingSettings
    seed: int

    @property
    def samples(self) -> bool:
        """Whether anything is drawn; else all is greedy."""
        return self.sampling.text_temperature > 0 or self.sampling.temperature > 0


def parse_options(
    parameters: Mapping[str, Any], engine: EngineSettings, sampling: SamplingSettings, voices: Sequence[str]
) -> Options:
    """Request parameters over the settings' defaults. Raises `OptionError` naming what came and what was expected."""
    draws = {field.name: getattr(sampling, field.name) for field in fields(sampling)}
    others: dict[str, Any] = {
        "dialect": engine.dialect,
        "voice": engine.voice or voices[0],
        "system_prompt": engine.system_prompt,
        "seed": secrets.randbelow(MAX_SEED),
    }
    for name, value in parameters.items():
        known = draws if name in draws else others
        if name not in known:
            raise OptionError(f"unknown option {name!r}, expected one of {', '.join(OPTIONS)}")
        known[name] = _as(type(known[name]), name, value)
    if others["dialect"] != "sca":
        raise OptionError(f"dialect is {others['dialect']!r}, expected 'sca'")
    if others["voice"] not in voices:
        raise OptionError(f"voice is {others['voice']!r}, expected one of {', '.join(voices)}")
    if not 0 <= others["seed"] <= MAX_SEED:
        raise OptionError(f"seed is {others['seed']}, expected a whole number from 0 to {MAX_SEED}")
    try:
        chosen = SamplingSettings(**draws)
    except SettingsError as error:
        raise OptionError(str(error).removeprefix("sampling.")) from error
    return Options(others["voice"], others["system_prompt"], chosen, others["seed"])


def _as(kind: type, name: str, value: Any) -> Any:
    """`value` as `kind`; numbers may come as text, since not every client can send a fraction."""
    words = {int: "a whole number", float: "a number", str: "text"}[kind]
    if isinstance(value, bool) or (kind is str and not isinstance(value, str)):
        raise OptionError(f"{name} is {value!r}, expected {words}")
    try:
        converted = kind(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise OptionError(f"{name} is {value!r}, expected {words}") from error
    if kind is int and isinstance(value, float) and converted != value:
        raise OptionError(f"{name} is {value!r}, expected {words}")
    return converted
