"""What a client may choose and ask for, as request parameters: options on START, controls on any tick."""

from __future__ import annotations

import dataclasses
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from config.loader import is_unicode, typed
from config.settings import (
    MOST_PROMPT_CHARACTERS,
    MOST_TYPED,
    OPTIONS,
    TURN_OPTIONS,
    SamplingSettings,
    Settings,
    SettingsError,
    TurnSettings,
)
from engine.errors import OptionError

MAX_SEED = 2**63 - 1
DEFAULT_VOICE = "ethan"  # Qwen's own


@dataclass(frozen=True)
class Options:
    """The choices of one conversation."""

    voice: str
    system_prompt: str
    sampling: SamplingSettings
    turn: TurnSettings
    seed: int


@dataclass(frozen=True)
class Item:
    """A message that becomes part of the history."""

    role: str  # of ROLES
    text: str


@dataclass(frozen=True)
class Truncation:
    """An answer of which the user has heard so much."""

    turn: int  # its number, as events give it
    heard_ms: int


@dataclass(frozen=True)
class Forgetting:
    """One side of a turn that leaves the history."""

    turn: int  # its number, as events give it
    part: str  # of PARTS


@dataclass(frozen=True)
class Controls:
    """What a client asks for in the middle of a conversation."""

    reset: bool = False  # begin the conversation anew
    listen: bool = False  # turn: what was heard of the user's turn is dropped, the turn begins here; an answer ends
    commit: bool = False  # turn: the user's turn ends with this tick
    cancel: bool = False  # turn: the answer ends
    transcript: bool = False  # turn: read out the conversation
    message: str = ""  # turn: the user has typed this
    items: tuple[Item, ...] = ()  # turn: messages that become part of the history, without an answer
    respond: bool = False  # turn: the history is to be answered as it is
    truncate: Truncation | None = None  # turn: how far an answer was heard
    forget: Forgetting | None = None  # turn: what leaves the history
    turn: Mapping[str, Any] | None = None  # turn: options of the section [turn] that change from here on


CONTROLS = tuple(field.name for field in fields(Controls))
STRUCTURED = ("items", "truncate", "forget", "turn")  # whose values are JSON
ROLES, PARTS = ("user", "assistant", "system"), ("user", "answer")
MOST_ITEMS = 16  # in one tick


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
        expected = str if name == "message" or name in STRUCTURED else bool
        if not isinstance(value, expected):
            raise OptionError(f"{name} is {value!r}, expected {'text' if expected is str else 'true or false'}")
        if name != "reset" and dialect != "turn":
            raise OptionError(f"{name} is a control of the dialect 'turn', but this server's is 'sca' (engine.dialect)")
    if "message" in found:
        expect_message(found["message"])
    for name in STRUCTURED:
        if name in found:
            found[name] = _structured(name, found[name])
    return Controls(**found)


def changed_turn(turn: TurnSettings, changes: Mapping[str, Any]) -> TurnSettings:
    """`turn` with some of its options changed. Raises `OptionError`."""
    values = {}
    for name, value in changes.items():
        if name not in TURN_OPTIONS:
            raise OptionError(f"unknown option {name!r} of a turn, expected one of {', '.join(TURN_OPTIONS)}")
        try:
            values[name] = typed(name, value, type(getattr(turn, name)))
        except SettingsError as error:
            raise OptionError(str(error)) from error
    try:
        return dataclasses.replace(turn, **values)
    except SettingsError as error:
        raise OptionError(str(error).partition(".")[2]) from error


def _structured(name: str, value: str) -> Any:
    """A control whose value is JSON. Raises `OptionError`."""
    expected = {
        "items": f'a list of at most {MOST_ITEMS} {{"role": one of {", ".join(ROLES)}, "text": ...}}',
        "truncate": '{"turn": number, "heard_ms": milliseconds}',
        "forget": '{"turn": number, "part": "user" or "answer"}',
        "turn": 'an object of options, such as {"detection": "manual"}',
    }[name]
    try:
        found = json.loads(value)
        match name:
            case "items":
                return _items(found)
            case "truncate":
                return Truncation(_natural(found.pop("turn")), _natural(found.pop("heard_ms")), **found)
            case "forget":
                forgetting = Forgetting(_natural(found.pop("turn")), **found)
                if forgetting.part in PARTS:
                    return forgetting
            case _:
                if isinstance(found, dict):
                    return found
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
        raise OptionError(f"{name} is {value[:40]!r}, expected {expected}") from None
    raise OptionError(f"{name} is {value[:40]!r}, expected {expected}")


def _items(found: Any) -> tuple[Item, ...]:
    items = tuple(Item(**item) for item in found)
    if len(items) > MOST_ITEMS or any(item.role not in ROLES for item in items):
        raise ValueError
    for item in items:
        most = MOST_TYPED if item.role == "user" else MOST_PROMPT_CHARACTERS
        if len(item.text) > most:
            raise OptionError(f"an item's text is {len(item.text)} characters long, expected at most {most}")
        if not item.text.strip() or not is_unicode(item.text):
            raise ValueError
    return items


def _natural(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError
    return value


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
