"""Controls as the request parameters of a tick: a bool, an integer or a string each, structured controls as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from config.loader import is_unicode, shown
from config.settings import MAX_PROMPT_CHARACTERS, MAX_TYPED
from contract.controls import (
    CONTROLS,
    Controls,
    ForgetControl,
    ItemControl,
    OutOfBandControl,
    Part,
    Role,
    TruncateControl,
)

REPORT_STATE = "report_state"
"""Request parameter of a START: true if the engine is to emit `state` events."""
MAX_ITEMS = 16  # messages in one tick
MAX_NATURAL = 2**31 - 1  # largest number of a turn, largest number of milliseconds
MOMENTS = ("listen", "commit")  # true, or milliseconds into the tick
EXPECTED = {
    "items": f'a list of at most {MAX_ITEMS} {{"role": one of {", ".join(role.value for role in Role)}, "text": ...}}',
    "truncate": '{"turn": number, "heard_ms": milliseconds}',
    "forget": '{"turn": number, "part": "user" or "answer"}',
    "turn": 'an object of options, such as {"detection": "manual"}',
    "out_of_band": '{"instructions": text, "turn": options} or {"cancel": true}',
}


class ControlError(ValueError):
    """A request parameter is not a valid control; the message says what was expected and what came."""


def parameters_of(controls: Controls) -> dict[str, bool | int | str]:
    """Return the request parameters that carry `controls`; a control with its default value needs none."""
    found: dict[str, bool | int | str] = {}
    for name in CONTROLS:
        value = getattr(controls, name)
        if not value and value != {}:
            continue
        match value:
            case bool() | int() | str():
                found[name] = value
            case tuple():
                found[name] = json.dumps([asdict(item) for item in value])
            case OutOfBandControl():
                found[name] = json.dumps(_out_of_band_fields(value))
            case TruncateControl() | ForgetControl():
                found[name] = json.dumps(asdict(value))
            case _:
                found[name] = json.dumps(dict(value))
    return found


def take_controls(parameters: dict[str, Any], tick_ms: int) -> Controls:
    """Remove the controls from request parameters and return them. Raises `ControlError`."""
    found = {name: parameters.pop(name) for name in CONTROLS if name in parameters}
    return Controls(**{name: _value_of(name, value, tick_ms) for name, value in found.items()})


def expect_message(text: str) -> None:
    """Raise `ControlError` unless `text` can be a typed message."""
    if not text.strip():
        raise ControlError("message: expected what the user has typed, got no text")
    if len(text) > MAX_TYPED:
        raise ControlError(f"message: expected at most {MAX_TYPED} characters, got {len(text)}")
    if not is_unicode(text):
        raise ControlError("message: expected Unicode, got half a character (a lone surrogate)")


def _value_of(name: str, value: Any, tick_ms: int) -> Any:
    if name in MOMENTS and type(value) is int:
        if not 0 < value <= tick_ms:
            raise ControlError(f"{name}: expected true, or milliseconds of the tick from 1 to {tick_ms}, got {value}")
        return value
    if name == "message":
        if not isinstance(value, str):
            raise ControlError(f"{name}: expected text, got {shown(value)}")
        expect_message(value)
        return value
    if name not in EXPECTED:
        if not isinstance(value, bool):
            raise ControlError(f"{name}: expected true or false, got {shown(value)}")
        return value
    if not isinstance(value, str):
        raise ControlError(f"{name}: expected JSON text, {EXPECTED[name]}, got {shown(value)}")
    try:
        return _structured(name, json.loads(value))
    except ControlError:
        raise
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
        raise ControlError(f"{name}: expected {EXPECTED[name]}, got {shown(value)}") from None


def _structured(name: str, found: Any) -> Any:
    """Return the control that parsed JSON stands for. Raises `ValueError`, `TypeError` or `KeyError`."""
    match name:
        case "items":
            return _items(found)
        case "truncate":
            return TruncateControl(_natural(found.pop("turn")), _natural(found.pop("heard_ms")), **found)
        case "forget":
            return ForgetControl(_natural(found.pop("turn")), Part(found.pop("part")), **found)
        case "out_of_band":
            return _out_of_band(**found)
    if not isinstance(found, dict):
        raise TypeError
    return found


def _items(found: Any) -> tuple[ItemControl, ...]:
    items = tuple(ItemControl(Role(item["role"]), **{k: v for k, v in item.items() if k != "role"}) for item in found)
    if len(items) > MAX_ITEMS:
        raise ValueError
    for item in items:
        longest = MAX_TYPED if item.role is Role.USER else MAX_PROMPT_CHARACTERS
        if len(item.text) > longest:
            raise ControlError(f"items: expected at most {longest} characters of text, got {len(item.text)}")
        if not item.text.strip() or not is_unicode(item.text):
            raise ValueError
    return items


def _out_of_band(instructions: Any = "", turn: Any = None, cancel: Any = False) -> OutOfBandControl:
    turn = {} if turn is None else turn
    if not isinstance(instructions, str) or not is_unicode(instructions):
        raise TypeError
    if not isinstance(turn, dict) or not isinstance(cancel, bool):
        raise TypeError
    if len(instructions) > MAX_PROMPT_CHARACTERS:
        expected = f"expected at most {MAX_PROMPT_CHARACTERS} characters"
        raise ControlError(f"out_of_band.instructions: {expected}, got {len(instructions)}")
    return OutOfBandControl(instructions, turn, cancel)


def _out_of_band_fields(control: OutOfBandControl) -> Mapping[str, Any]:
    if control.cancel:
        return {"cancel": True}
    return {"instructions": control.instructions, "turn": dict(control.turn)}


def _natural(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= MAX_NATURAL:
        raise ValueError
    return value
