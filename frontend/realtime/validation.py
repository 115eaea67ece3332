"""Validation of what a client has sent: pydantic models, and their errors as errors of the protocol."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from config.loader import is_unicode, shown
from config.settings import MAX_PROMPT_CHARACTERS
from contract.errors import ErrorCode
from frontend.realtime.events import RealtimeError

MAX_NATURAL = 2**31 - 1
EXPECTED = {
    "missing": "a value",
    "string_type": "text",
    "bool_type": "true or false",
    "int_type": "a whole number",
    "float_type": "a number",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}
"""What a field must be, by the type of pydantic's error."""


class Model(BaseModel):
    """The fields of an object that a client sends; unknown fields are ignored."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True, arbitrary_types_allowed=True)


class UnmetError(ValueError):
    """A value is not what a field requires."""

    def __init__(self, expected: str, code: str = ErrorCode.INVALID_VALUE, got: str = "", field: str = ""):
        """Describe the requirement; `got`: the value in words, `field`: path of the value within the validated one."""
        super().__init__(expected)
        self.expected, self.code, self.got, self.field = expected, code, got, field


Validated = TypeVar("Validated", bound=Model)


def validate(model: type[Validated], value: Any, name: str = "") -> Validated:
    """Return `value` as a `model`; `name` is its path in the client's event. Raises `RealtimeError`."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise _realtime_error(error.errors(include_url=False)[0], name) from None


def _realtime_error(error: ErrorDetails, name: str) -> RealtimeError:
    """Return the protocol's error: its code, "expected X, got Y", and the path of the field."""
    unmet = error.get("ctx", {}).get("error")
    path = [name, *(part for part in error["loc"] if isinstance(part, str))]
    if isinstance(unmet, UnmetError):
        expected, code, got, path = unmet.expected, unmet.code, unmet.got, [*path, unmet.field]
    else:
        literals = error.get("ctx", {}).get("expected")
        expected, code, got = EXPECTED.get(error["type"], literals or error["msg"]), ErrorCode.INVALID_VALUE, ""
    if error["type"] == "missing":
        got = "none"
    param = ".".join(part for part in path if part)
    return RealtimeError(f"{param}: expected {expected}, got {got or shown(error['input'])}", code, param)


def field(check: Callable[[Any], Any]) -> BeforeValidator:
    """Return the validator of a field that `check` converts; `check` raises `UnmetError`."""
    return BeforeValidator(check)


def text(value: Any, name: str = "") -> str:
    """Return Unicode text without NUL. Raises `UnmetError`."""
    if not isinstance(value, str):
        raise UnmetError("text", field=name)
    if "\0" in value or not is_unicode(value):
        raise UnmetError("Unicode text without NUL", field=name)
    return value


def _natural(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= MAX_NATURAL:
        raise UnmetError("a whole number from 0")
    return value


def _instructions(value: Any) -> str:
    found = text("" if value is None else value)
    if len(found) > MAX_PROMPT_CHARACTERS:
        code, got = ErrorCode.STRING_ABOVE_MAX_LENGTH, f"{len(found)} characters"
        raise UnmetError(f"at most {MAX_PROMPT_CHARACTERS} characters", code, got)
    return found


def _optional(value: Any) -> Any:
    """Return an empty object for null."""
    return {} if value is None else value


Text = Annotated[str, field(text)]
Natural = Annotated[int, field(_natural)]
Instructions = Annotated[str, field(_instructions)]
Optional = field(_optional)
"""Validator of an object that may be null."""
