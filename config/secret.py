"""Secrets among the settings and in the environment, and their removal from every text that a program shows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

SECRETS = frozenset({"bridge.api_keys", "bridge.ice_servers", "bridge.traces_url"})
"""Settings that contain a secret, or may contain one."""
SECRET_FILES = frozenset({"bridge.api_keys_file", "bridge.tls_key"})
"""Settings with the path of a secret file; by mistake such a setting may contain the secret."""
HIDDEN = "(not shown)"
SECRET_VARIABLE = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|API_?KEY|ACCESS_?KEY|OTLP(_\w+)?_HEADERS")
URL = re.compile(r"[\w+.-]+://")
TURN = re.compile(r"turns?:[^:@,]*:(?P<password>[^,]*)@")
USUAL_PATHS = ("", "/", "/v1/traces")
MIN_LENGTH = 4  # shorter texts would hide parts of ordinary words


def is_secret(name: str) -> bool:
    """Return whether the value of the setting `name`, as section.key, must not be shown."""
    return name in SECRETS or name in SECRET_FILES


def variable_of(name: str) -> str:
    """Return the environment variable of the setting `name`."""
    return "SCA_" + name.replace(".", "_").upper()


SECRET_VARIABLES = {variable_of(name): name for name in SECRETS | SECRET_FILES}


def secrets_of(values: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """Return the secret texts in the settings `values`, by section and key."""
    return {text for name in SECRETS for text in _parts(name, str(_value(values, name))) if len(text) >= MIN_LENGTH}


def secrets_in(environ: Mapping[str, str]) -> set[str]:
    """Return the secret texts in environment variables: those of settings, tokens, and passwords in URLs."""
    found: set[str] = set()
    for variable, value in environ.items():
        name = SECRET_VARIABLES.get(variable)
        if name in SECRETS:
            found.update(_parts(name, value))
        elif name is None and SECRET_VARIABLE.search(variable.upper()) and not value.startswith(("/", "./", "~")):
            found.update((value, *(part.partition("=")[2] for part in value.split(","))))
        elif URL.match(value):
            found.update(passwords(value))
    return {text for text in found if len(text) >= MIN_LENGTH}


def redact(text: str, secrets: Iterable[str]) -> str:
    """Return the text with `HIDDEN` in place of each secret; a longer secret may contain a shorter one."""
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return text


def public_url(url: str) -> str:
    """Return a URL without user, password, query and fragment."""
    scheme, separator, rest = url.partition("://")
    authority, slash, path = re.split(r"[?#]", rest, maxsplit=1)[0].partition("/")
    return f"{scheme}{separator}{authority.rpartition('@')[2]}{slash}{path}" if separator else HIDDEN


def _value(values: Mapping[str, Mapping[str, Any]], name: str) -> Any:
    section, _, key = name.partition(".")
    return values[section][key]


def _parts(name: str, value: str) -> Iterator[str]:
    if name == "bridge.traces_url":
        yield from passwords(value)
        path = re.sub(r"[?#].*", "", value.partition("://")[2].partition("/")[2])
        if f"/{path}" not in USUAL_PATHS:
            yield path
        return
    for part in (each.strip() for each in value.split(",")):
        if name == "bridge.ice_servers":
            match = TURN.match(part)
            yield from (match["password"], unquote(match["password"])) if match else passwords(part)
        else:
            yield part


def passwords(url: str) -> Iterator[str]:
    """Yield the secret parts of a URL: password, or a user name without a password, and the values of its query."""
    rest = url.partition("://")[2]
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    user, at, _ = authority.rpartition("@")
    if at:
        password = user.partition(":")[2] or user
        yield from (password, unquote(password))
    try:
        query = urlsplit(url).query
    except ValueError:  # not a URL
        return
    for pair in query.split("&"):
        yield from (text := pair.partition("=")[2], unquote(text))
