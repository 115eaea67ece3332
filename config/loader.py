"""Sources of settings (TOML files, the environment, values in code), and checks of single values."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from config.secret import HIDDEN, is_secret

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

NOT_SETTINGS = {"SCA_VENV", "SCA_PYTHON", "SCA_CONFIG"}  # environment variables of ./sca itself
SHOWN = 40  # maximum number of characters that an error quotes of a bad value
BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


class SettingsError(ValueError):
    """A setting is unknown or has an impossible value; the message names setting, value and allowed values."""


def shown(value: object) -> str:
    """Return a value as an error quotes it, shortened to one line."""
    if isinstance(value, str):
        return repr(value if len(value) <= SHOWN else value[:SHOWN] + "...")
    text = repr(value)
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."


def shown_of(name: str, value: object) -> str:
    """Return the value of the setting `name` as an error quotes it; a secret is not quoted."""
    return f"a value {HIDDEN}" if value and is_secret(name) else shown(value)


def expect(holds: bool, name: str, value: object, expected: str) -> None:
    """Raise `SettingsError` unless the condition `holds`."""
    if not holds:
        raise SettingsError(f"{name}: expected {expected}, got {shown_of(name, value)}")


def listed(text: str) -> tuple[str, ...]:
    """Return the parts of a text between commas, without duplicates."""
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def read_toml(path: Path) -> dict[str, Any]:
    """Return the tables of a TOML file; raise `SettingsError` if it cannot be read."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"the settings file {path} cannot be read: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"the settings file {path} is not TOML: {error}") from error


def merge(values: dict[str, Any], changes: Mapping[str, Any], source: str) -> None:
    """Write `changes` over `values`; raise `SettingsError` for an unknown section or key, which `source` has set."""
    for section, keys in changes.items():
        if section not in values:
            raise SettingsError(f"unknown section [{section}] in {source}: expected one of {', '.join(values)}")
        if not isinstance(keys, dict):
            raise SettingsError(f"[{section}] in {source}: expected a table of settings, got {type(keys).__name__}")
        for key, value in keys.items():
            if key not in values[section]:
                known = ", ".join(values[section])
                raise SettingsError(f"unknown setting {section}.{key} in {source}: expected one of {known}")
            values[section][key] = value


def from_environment(values: dict[str, Any], environ: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Return the SCA_<SECTION>_<KEY> variables as a table; raise `SettingsError` for an SCA_ name without a setting."""
    changes: dict[str, dict[str, str]] = {}
    for variable, value in environ.items():
        if not variable.startswith("SCA_") or variable in NOT_SETTINGS:
            continue
        section, _, key = variable.removeprefix("SCA_").lower().partition("_")
        if key not in values.get(section, {}):
            raise SettingsError(f"unknown environment variable {variable}: config/default.toml has no {section}.{key}")
        changes.setdefault(section, {})[key] = value
    return changes


def typed(name: str, value: Any, expected: type) -> Any:
    """Return `value` as the type `expected`; raise `SettingsError` if that is impossible.

    Numbers and booleans may be text, because the environment and a query string hold only text.
    """
    words = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}[expected]
    if expected is bool and isinstance(value, str):
        value = BOOLEANS.get(value.lower(), value)
    if expected in (int, float) and not isinstance(value, bool):
        try:
            number = expected(value)
        except (TypeError, ValueError, OverflowError) as error:
            raise SettingsError(f"{name}: expected {words}, got {shown_of(name, value)}") from error
        value = number if isinstance(value, str) or number == value or number != number else value
    if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
        raise SettingsError(f"{name}: expected {words}, got {shown_of(name, value)}")
    return value


def is_unicode(text: str) -> bool:
    """Return whether a text is valid Unicode: JSON lets half a character (a lone surrogate) through."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
