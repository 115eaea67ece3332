"""Request parameters of a conversation: the options of its START, and the controls of any tick."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from config import SettingsError
from config.loader import typed
from config.options import Options, options_of
from config.settings import TURN_OPTIONS, Settings, TurnSettings
from contract.controls import CONTROLS, Controls
from contract.parameters import REPORT_STATE, ControlError, take_controls
from engine.errors import OptionError

EVERY_DIALECT = frozenset({"reset"})
"""Controls that all dialects have; the others belong to the dialect `turn`."""


def parse_controls(parameters: dict[str, Any], settings: Settings) -> Controls:
    """Remove the controls from request parameters and return them. Raises `OptionError`."""
    found = [name for name in CONTROLS if name in parameters and name not in EVERY_DIALECT]
    dialect = settings.engine.dialect
    if found and dialect != "turn":
        raise OptionError(f"{found[0]}: expected a server of the dialect 'turn', got {dialect!r} (engine.dialect)")
    try:
        return take_controls(parameters, settings.audio.tick_ms)
    except ControlError as error:
        raise OptionError(str(error)) from error


def parse_options(parameters: Mapping[str, Any], settings: Settings, voices: Sequence[str]) -> Options:
    """Return the options of a START request, over the settings' defaults. Raises `OptionError`."""
    chosen = dict(parameters)
    report_state = chosen.pop(REPORT_STATE, False)
    if not isinstance(report_state, bool):
        raise OptionError(f"{REPORT_STATE}: expected true or false, got {report_state!r}")
    try:
        options = options_of(chosen, settings, voices)
    except SettingsError as error:
        raise OptionError(str(error)) from error
    return dataclasses.replace(options, report_state=report_state)


def changed_turn(turn: TurnSettings, changes: Mapping[str, Any]) -> TurnSettings:
    """Return `turn` with some of its options changed. Raises `OptionError`."""
    values = {}
    for name, value in changes.items():
        if name not in TURN_OPTIONS:
            raise OptionError(f"turn: expected one of {', '.join(TURN_OPTIONS)}, got {name!r}")
        try:
            values[name] = typed(name, value, type(getattr(turn, name)))
        except SettingsError as error:
            raise OptionError(str(error)) from error
    try:
        return dataclasses.replace(turn, **values)
    except SettingsError as error:
        raise OptionError(str(error).partition(".")[2]) from error
