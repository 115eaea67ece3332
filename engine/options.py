"""What a client may choose and ask for, as request parameters: options on START, controls on any tick."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from config.loader import is_unicode, typed
from config.settings import MOST_TYPED, OPTIONS, TURN_OPTIONS, SamplingSettings, Settings, SettingsError, TurnSettings
from engine.errors import OptionError

MAX_SEED = 2**63 - 1
DEFAULT_VOICE = "ethan"  # Qwen's own
MOST_PROMPT_CHARACTERS = 20_000  # of a system prompt: what is longer is not even tokenized


@dataclass(frozen=True)
class Options:
    """The choices of one conversation."""

    voice: str
    system_prompt: str
    sampling: SamplingSettings
    turn: TurnSettings
    seed: int


@dataclass(frozen=True)
class Controls:
    """What a client asks for in the middle of a conversation."""

    reset: bool = False  # begin the conversation anew
    listen: bool = False  # turn: what was heard of the user's turn is dropped, the turn begins here; an answer ends
    commit: bool = False  # turn: the user's turn ends with this tick
    cancel: bool = False  # turn: the answer ends
    transcript: bool = False  # turn: read out the conversation
    message: str = ""  # turn: the user has typed this


CONTROLS = tuple(field.name for field in fields(Controls))


def expect_message(text: str) -> None:
    """Raises `OptionError` for what is no message."""
    if not text.strip():
        raise OptionError("message is empty, expected what the user has typed")
    if len(text) > MOST_TYPED:
        raise OptionError(f"message is {len(text)} characters long, expected at most {MOST_TYPED}")
    if not is_unicode(text):
        raise OptionError("message holds half a character (a lone surrogate), expected Unicode")


def parse_controls(parameters: dict[str, Any], dialect: str) -> Controls:
    """Takes the controls out of request parameters. Raises `OptionError`."""
    found = {name: parameters.pop(name) for name in CONTROLS if name in parameters}
    for name, value in found.items():
        expected = str if name == "message" else bool
        if not isinstance(value, expected):
            raise OptionError(f"{name} is {value!r}, expected {'text' if expected is str else 'true or false'}")
        if name != "reset" and dialect != "turn":
            raise OptionError(f"{name} is a control of the dialect 'turn', but this server's is 'sca' (engine.dialect)")
    if "message" in found:
        expect_message(found["message"])
    return Controls(**found)


def parse_options(parameters: Mapping[str, Any], settings: Settings, voices: Sequence[str]) -> Options:
    """Request parameters over the settings' defaults. Raises `OptionError` naming what came and what was expected."""
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
            raise OptionError(f"unknown option {name!r}, expected one of {', '.join(OPTIONS)}")
        try:
            known[name] = typed(name, value, type(known[name]))
        except SettingsError as error:
            raise OptionError(str(error)) from error
    if others["dialect"] != engine.dialect:
        raise OptionError(f"dialect is {others['dialect']!r}, expected {engine.dialect!r}: a checkpoint speaks one")
    voice = others["voice"].lower()  # transformers asks no more of a speaker's name either
    if voice not in voices:
        raise OptionError(f"voice is {others['voice']!r}, expected one of {', '.join(voices)}")
    if not 0 <= others["seed"] <= MAX_SEED:
        raise OptionError(f"seed is {others['seed']}, expected a whole number from 0 to {MAX_SEED}")
    length = len(others["system_prompt"])
    if length > MOST_PROMPT_CHARACTERS:
        raise OptionError(f"system_prompt is {length} characters long, expected at most {MOST_PROMPT_CHARACTERS}")
    try:
        sampling = SamplingSettings(**draws)
        turn = dataclasses.replace(settings.turn, **turns)
    except SettingsError as error:
        raise OptionError(str(error).partition(".")[2]) from error
    return Options(voice, others["system_prompt"], sampling, turn, others["seed"])
