"""What a client may choose and ask for, as request parameters: options on START, controls on any tick."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from config import SettingsError
from config.loader import is_unicode, typed
from config.options import Options, options_of
from config.settings import (
    MAX_PROMPT_CHARACTERS,
    MAX_TYPED,
    TURN_OPTIONS,
    Settings,
    TurnSettings,
)
from engine.errors import OptionError


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
class OutOfBand:
    """An answer to the history of which the history keeps nothing."""

    instructions: str = ""  # a system message for it alone
    turn: Mapping[str, Any] = field(default_factory=dict)  # its own options of the section [turn]
    cancel: bool = False  # it ends, if it is being given


@dataclass(frozen=True)
class Controls:
    """What a client asks for in the middle of a conversation."""

    reset: bool = False  # begin the conversation anew
    listen: bool | int = (
        False  # turn: the user's turn begins here, or so many ms later; what was heard of it is dropped
    )
    commit: bool | int = False  # turn: the user's turn ends with this tick, or so many ms into it
    cancel: bool = False  # turn: the answer ends
    transcript: bool = False  # turn: read out the conversation
    message: str = ""  # turn: the user has typed this
    items: tuple[Item, ...] = ()  # turn: messages that become part of the history, without an answer
    respond: bool = False  # turn: the history is to be answered as it is
    truncate: Truncation | None = None  # turn: how far an answer was heard
    forget: Forgetting | None = None  # turn: what leaves the history
    turn: Mapping[str, Any] | None = None  # turn: options of the section [turn] that change from here on
    out_of_band: OutOfBand | None = None  # turn: the history is to be answered, and to stay as it is


CONTROLS = tuple(each.name for each in fields(Controls))
PLACES = ("listen", "commit")  # whose values are true, or milliseconds into the tick
STRUCTURED = ("items", "truncate", "forget", "turn", "out_of_band")  # whose values are JSON
ROLES, PARTS = ("user", "assistant", "system"), ("user", "answer")
MAX_ITEMS = 16  # in one tick
MAX_NATURAL = 2**31 - 1  # of a turn's number and of milliseconds


def expect_message(text: str) -> None:
    """Raises `OptionError` for what is no message."""
    if not text.strip():
        raise OptionError("message is empty, expected what the user has typed")
    if len(text) > MAX_TYPED:
        raise OptionError(f"message is {len(text)} characters long, expected at most {MAX_TYPED}")
    if not is_unicode(text):
        raise OptionError("message holds half a character (a lone surrogate), expected Unicode")


def parse_controls(parameters: dict[str, Any], settings: Settings) -> Controls:
    """Takes the controls out of request parameters. Raises `OptionError`."""
    found = {name: parameters.pop(name) for name in CONTROLS if name in parameters}
    dialect, tick_ms = settings.engine.dialect, settings.audio.tick_ms
    for name, value in found.items():
        if name in PLACES and type(value) is int:
            if not 0 < value <= tick_ms:
                raise OptionError(f"{name} is {value}, expected true, or milliseconds of the tick from 1 to {tick_ms}")
            continue
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
        "items": f'a list of at most {MAX_ITEMS} {{"role": one of {", ".join(ROLES)}, "text": ...}}',
        "truncate": '{"turn": number, "heard_ms": milliseconds}',
        "forget": '{"turn": number, "part": "user" or "answer"}',
        "turn": 'an object of options, such as {"detection": "manual"}',
        "out_of_band": '{"instructions": text, "turn": options} or {"cancel": true}',
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
            case "out_of_band":
                return _out_of_band(**found)
            case _:
                if isinstance(found, dict):
                    return found
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
        raise OptionError(f"{name} is {value[:40]!r}, expected {expected}") from None
    raise OptionError(f"{name} is {value[:40]!r}, expected {expected}")


def _items(found: Any) -> tuple[Item, ...]:
    items = tuple(Item(**item) for item in found)
    if len(items) > MAX_ITEMS or any(item.role not in ROLES for item in items):
        raise ValueError
    for item in items:
        most = MAX_TYPED if item.role == "user" else MAX_PROMPT_CHARACTERS
        if len(item.text) > most:
            raise OptionError(f"an item's text is {len(item.text)} characters long, expected at most {most}")
        if not item.text.strip() or not is_unicode(item.text):
            raise ValueError
    return items


def _out_of_band(instructions: Any = "", turn: Any = None, cancel: Any = False) -> OutOfBand:
    turn = {} if turn is None else turn
    if not isinstance(instructions, str) or not is_unicode(instructions):
        raise ValueError
    if not isinstance(turn, dict) or not isinstance(cancel, bool):
        raise ValueError
    if len(instructions) > MAX_PROMPT_CHARACTERS:
        most = MAX_PROMPT_CHARACTERS
        raise OptionError(f"out_of_band.instructions is {len(instructions)} characters long, expected at most {most}")
    return OutOfBand(instructions, turn, cancel)


def _natural(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= MAX_NATURAL:
        raise ValueError
    return value


def parse_options(parameters: Mapping[str, Any], settings: Settings, voices: Sequence[str]) -> Options:
    """Request parameters over the settings' defaults. Raises `OptionError` naming what came and what was expected."""
    try:
        return options_of(parameters, settings, voices)
    except SettingsError as error:
        raise OptionError(str(error)) from error
