"""The frames of `/ws/pcm16`: binary frames of PCM16 and text frames of JSON, in both directions.

In:  binary, any even number of bytes: PCM16 mono 16 kHz; text, an object whose "type" is a `Control`.
Out: binary, one for each tick: PCM16 mono 24 kHz; later ticks of silence are shorter by the samples that a commit has
     padded; text: events, each with a "type".
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from config import Settings, SettingsError
from config.loader import is_unicode, shown
from config.options import DEFAULT_VOICE, options_of
from config.settings import INPUT_HZ, MAX_TYPED, OPTIONS, OUTPUT_HZ
from contract.controls import Controls
from contract.errors import ErrorCode
from frontend.audio.pcm import SAMPLE_BYTES

MAX_INTEGER = 2**63 - 1  # a larger request parameter cuts off the whole gRPC stream
MAX_TEXT = 150_000  # characters of a text frame: the longest system prompt, with every character escaped


class Control(Enum):
    """The type of a client's text frame."""

    OPTIONS = "options"  # options of the conversation, of any length; before any audio
    COMMIT = "commit"  # end of the user's turn; the open tick is padded with silence and sent at once
    MESSAGE = "message"  # text typed by the user; the open tick is also padded and sent at once
    CANCEL = "cancel"  # the answer ends with the next tick
    LISTEN = "listen"  # the user's turn begins here: an open one is dropped, an answer ends
    TRANSCRIPT = "transcript"  # the next tick reports the history as text
    RESET = "reset"  # the next tick begins the conversation again
    PING = "ping"  # request of a pong with the same "sent", and the duration of the latest tick
    PLAYBACK = "playback"  # the loudspeaker ran out of audio "gaps" times
    END = "end"  # the bridge closes after the answer to the audio until now


@dataclass(eq=False)
class ProtocolError(Exception):
    """A frame that is not valid. The bridge ignores the frame; the conversation continues."""

    code: ErrorCode
    message: str


def check_sound(frame: bytes, max_bytes: int) -> bytes:
    """Return a valid binary frame. Raises `ProtocolError`."""
    if not frame:
        raise ProtocolError(ErrorCode.EMPTY_FRAME, "expected PCM16 samples, got a binary frame of 0 bytes")
    if len(frame) > max_bytes:
        message = f"expected a binary frame of at most {max_bytes} bytes (bridge.max_frame_bytes), got {len(frame)}"
        raise ProtocolError(ErrorCode.FRAME_TOO_LARGE, message)
    if len(frame) % SAMPLE_BYTES:
        message = f"expected an even number of bytes (a PCM16 sample has 2), got a binary frame of {len(frame)} bytes"
        raise ProtocolError(ErrorCode.ODD_FRAME, message)
    return frame


def parse_control(text: str) -> tuple[Control, dict[str, Any]]:
    """Return the type of a text frame and its other fields. Raises `ProtocolError`."""
    if len(text) > MAX_TEXT:
        message = f"expected a text frame of at most {MAX_TEXT} characters, got {len(text)}"
        raise ProtocolError(ErrorCode.FRAME_TOO_LARGE, message)
    expected = "expected " + " or ".join(json.dumps({"type": control.value}) for control in Control)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):  # not JSON, a number with too many digits, or brackets nested too deep
        message = f"{expected}, got the text frame {shown(text)}; send audio in binary frames"
        raise ProtocolError(ErrorCode.NOT_JSON, message) from None
    try:
        return Control(found.pop("type")), found
    except (AttributeError, TypeError, KeyError, ValueError):
        message = f"{expected}, got the text frame {shown(text)}"
        raise ProtocolError(ErrorCode.UNKNOWN_CONTROL, message) from None


def add_control(controls: Controls, control: Control, details: Mapping[str, Any], dialect: str) -> Controls:
    """Return `controls` with one more request of the client. Raises `ProtocolError`."""
    if control is not Control.RESET and dialect != "turn":
        message = f"{control.value} requires engine.dialect turn, got {dialect}: a dialect without turns"
        raise ProtocolError(ErrorCode.NO_TURNS, message)
    if control is not Control.MESSAGE:
        found: dict[str, Any] = {control.value: True}
        return replace(controls, **found)
    text = details.get("text")
    if not isinstance(text, str) or not text.strip() or not is_unicode(text) or "\0" in text:
        raise ProtocolError(ErrorCode.BAD_MESSAGE, f"expected a message's text of Unicode, got {shown(text)}")
    if len(text) > MAX_TYPED:
        message = f"expected a message of at most {MAX_TYPED} characters, got {len(text)}"
        raise ProtocolError(ErrorCode.BAD_MESSAGE, message)
    return replace(controls, message=text)


def number_of(control: Control, details: Mapping[str, Any], name: str, max_value: float) -> float:
    """Return a number from 0 to `max_value` among a control's fields. Raises `ProtocolError`."""
    value = details.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= max_value:
        message = f"{control.value}.{name}: expected a number from 0 to {max_value:g}, got {shown(value)}"
        raise ProtocolError(ErrorCode.BAD_NUMBER, message)
    return value


def check_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options of known names that Triton can carry. Raises `ProtocolError`."""
    for name, value in options.items():
        if name not in OPTIONS:
            message = f"unknown option {shown(name)}, expected one of {', '.join(OPTIONS)}"
            raise ProtocolError(ErrorCode.UNKNOWN_OPTION, message)
        if problem := _problem_of(value):
            raise ProtocolError(ErrorCode.BAD_OPTION, f"{name}: {problem}")
    return dict(options)


def _problem_of(value: Any) -> str | None:
    """Return the reason if a request parameter cannot have this value."""
    if not isinstance(value, (str, int, float)):
        return f"expected text or a number, got {shown(value)}"
    if isinstance(value, str) and not is_unicode(value):
        return "expected Unicode, got half a character (a lone surrogate)"
    if isinstance(value, str) and "\0" in value:  # Triton cuts a string at NUL
        return "expected text without a NUL character"
    if isinstance(value, int) and abs(value) > MAX_INTEGER:
        return f"expected a number of at most 64 bits, got {shown(value)}"
    return None


def check_values(options: Mapping[str, Any], settings: Settings, voices: Sequence[str]) -> None:
    """Raise `ProtocolError` for values that the engine would reject; without `voices` any voice passes."""
    voice = options.get("voice")
    known = voices or ([voice.lower()] if isinstance(voice, str) else [DEFAULT_VOICE])
    try:
        options_of(options, settings, known)
    except SettingsError as error:
        raise ProtocolError(ErrorCode.BAD_OPTION, str(error)) from None


def opened_event(sequence_id: int, settings: Settings) -> dict[str, Any]:
    """Return the first event: the conversation's id, and the audio formats of both directions."""

    def sound(rate: int, samples: int) -> dict[str, Any]:
        return {"encoding": "pcm_s16le", "channels": 1, "sample_rate": rate, "tick_bytes": samples * SAMPLE_BYTES}

    audio = settings.audio
    return {
        "type": "conversation.opened",
        "id": str(sequence_id),
        "dialect": settings.engine.dialect,
        "tick_ms": audio.tick_ms,
        "input": sound(INPUT_HZ, audio.input_samples),
        "output": sound(OUTPUT_HZ, audio.output_samples),
    }


def event_text(event: Mapping[str, Any]) -> str:
    """Return the text frame of an event."""
    return json.dumps(event, ensure_ascii=False)


def error_event(code: ErrorCode, message: str) -> dict[str, Any]:
    """Return the event of an error."""
    return {"type": "error", "code": code.value, "message": message}
