"""The options of a conversation: the settings that a client may choose for one conversation."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from config.loader import SettingsError, shown, typed
from config.sampling import SamplingSettings
from config.settings import MAX_PROMPT_CHARACTERS, OPTIONS, TURN_OPTIONS, Settings
from config.turn import TurnSettings

MAX_SEED = 2**63 - 1
DEFAULT_VOICE = "ethan"  # default speaker of Qwen3-Omni


@dataclass(frozen=True)
class Options:
    """Validated options of one conversation."""

    voice: str
    system_prompt: str
    sampling: SamplingSettings
    turn: TurnSettings
    seed: int
    report_state: bool = False  # emit `state` events: a bridge sets it, clients cannot


def options_of(parameters: Mapping[str, Any], settings: Settings, voices: Sequence[str]) -> Options:
    """Return the request parameters over the settings' defaults; raise `SettingsError` for an unknown or bad one."""
    engine = settings.engine
    draws = {field.name: getattr(settings.sampling, field.name) for field in fields(SamplingSettings)}
    turns = {name: getattr(settings.turn, name) for name in TURN_OPTIONS}
    others: dict[str, Any] = {
        "dialect": engine.dialect,
        "voice": engine.voice or (DEFAULT_VOICE if DEFAULT_VOICE in voices else voices[0]),
        "system_prompt": engine.system_prompt,
        "seed": secrets.randbelow(MAX_SEED),
    }
    for name, value in parameters.items():
        known = next((group for group in (draws, turns) if name in group), others)
        if name not in known:
            raise SettingsError(f"unknown option {shown(name)}: expected one of {', '.join(OPTIONS)}")
        known[name] = typed(name, value, type(known[name]))
    if others["dialect"] != engine.dialect:
        raise SettingsError(
            f"dialect: expected {engine.dialect!r}, got {shown(others['dialect'])}: a checkpoint has one dialect"
        )
    voice = others["voice"].lower()  # case-insensitive, as in transformers
    if voice not in voices:
        raise SettingsError(f"voice: expected one of {', '.join(voices)}, got {shown(others['voice'])}")
    if not 0 <= others["seed"] <= MAX_SEED:
        raise SettingsError(f"seed: expected a whole number from 0 to {MAX_SEED}, got {others['seed']}")
    length = len(others["system_prompt"])
    if length > MAX_PROMPT_CHARACTERS:
        raise SettingsError(f"system_prompt: expected at most {MAX_PROMPT_CHARACTERS} characters, got {length}")
    try:
        sampling = SamplingSettings(**draws)
        turn = dataclasses.replace(settings.turn, **turns)
    except SettingsError as error:
        raise SettingsError(str(error).partition(".")[2]) from error
    return Options(voice, others["system_prompt"], sampling, turn, others["seed"])
