"""What travels over the WebSocket: binary frames of PCM16 and text frames of JSON, both ways.

In:  binary, any even number of bytes: PCM16 mono 16 kHz;
     text: {"type": "options", ...} before any sound, {"type": "commit"}, {"type": "cancel"}, {"type": "listen"},
     {"type": "message", "text": ...}, {"type": "transcript"}, {"type": "reset"}, {"type": "ping", "sent": ...},
     {"type": "playback", "gaps": ...}, {"type": "end"}.
Out: binary, one a tick: PCM16 mono 24 kHz, after a commit with less silence by as much as closed its tick;
     text: events, each with a "type".
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
from frontend.audio.pcm import SAMPLE_BYTES

Event = dict[str, Any]
GREATEST_INTEGER = 2**63 - 1  # of a request parameter: a larger one would cut off the whole gRPC stream
MAX_TEXT = 150_000  # characters of a text frame: the longest system prompt, every character escaped


class Control(Enum):
    """What a client may ask."""

    OPTIONS = "options"  # before any sound: the conversation's options, as the query has them, of any length
    COMMIT = "commit"  # the user's turn ends here; the open tick is closed with silence and sent at once
    MESSAGE = "message"  # the user has typed "text"; sent at once, likewise
    CANCEL = "cancel"  # the answer ends with the next tick
    LISTEN = "listen"  # the user's turn begins here: what was heard of it is dropped, an answer ends
    TRANSCRIPT = "transcript"  # the next tick reads out the conversation
    RESET = "reset"  # the next tick begins the conversation anew
    PING = "ping"  # answered by a pong with the same "sent", and what ticks take
    PLAYBACK = "playback"  # the loudspeaker ran out of sound so many times more: "gaps"
    END = "end"  # the sound so far is answered, then the bridge closes


@dataclass(eq=False)
class ProtocolError(Exception):
    """A frame that the protocol has no place for. It is left out; the conversation goes on."""

    code: str
    message: str


def check_sound(frame: bytes, limit: int) -> bytes:
    """A binary frame, or `ProtocolError`."""
    if not frame:
        raise ProtocolError("empty_frame", "a binary frame of 0 bytes came, expected PCM16 samples")
    if len(frame) > limit:
        raise ProtocolError(
            "frame_too_large",
            f"a binary frame of {len(frame)} bytes came, expected at most {limit} (bridge.max_frame_bytes)",
        )
    if len(frame) % SAMPLE_BYTES:
        raise ProtocolError(
            "odd_frame", f"a binary frame of {len(frame)} bytes came, expected an even number: PCM16 has 2 a sample"
        )
    return frame


def parse_control(text: str) -> tuple[Control, dict[str, Any]]:
    """A text frame: what is asked, and what else it says. Raises `ProtocolError`."""
    if len(text) > MAX_TEXT:
        raise ProtocolError(
            "frame_too_large", f"a text frame of {len(text)} characters came, expected at most {MAX_TEXT}"
        )
    controls = " or ".join(json.dumps({"type": control.value}) for control in Control)
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):  # no JSON; or a number too long, or brackets too deep
        raise ProtocolError(
            "not_json", f"the text frame {shown(text)} came, expected {controls}; sound belongs in binary frames"
        ) from None
    try:
        return Control(message.pop("type")), message
    except (AttributeError, TypeError, KeyError, ValueError):
        raise ProtocolError("unknown_control", f"the text frame {shown(text)} came, expected {controls}") from None


def add_control(controls: Controls, control: Control, details: Mapping[str, Any], dialect: str) -> Controls:
    """Return `controls` with one more request of the client. Raises `ProtocolError`."""
    if control is not Control.RESET and dialect != "turn":
        raise ProtocolError(
            "no_turns", f"{control.value} came, but the dialect spoken here takes no turns: {dialect} (engine.dialect)"
        )
    if control is not Control.MESSAGE:
        found: dict[str, Any] = {control.value: True}
        return replace(controls, **found)
    text = details.get("text")
    if not isinstance(text, str) or not text.strip() or not is_unicode(text) or "\0" in text:
        raise ProtocolError(
            "bad_message", f"a message came with the text {shown(text)}, expected what the user has typed"
        )
    if len(text) > MAX_TYPED:
        raise ProtocolError("bad_message", f"a message of {len(text)} characters came, expected at most {MAX_TYPED}")
    return replace(controls, message=text)


def number_of(control: Control, details: Mapping[str, Any], name: str, most: float) -> float:
    """A number that a control brings, from 0. Raises `ProtocolError`."""
    value = details.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= most:
        raise ProtocolError(
            "bad_number", f"{control.value} came with {name} {shown(value)}, expected a number from 0 to {most:g}"
        )
    return value


def check_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options by known names, of kinds that can travel, or `ProtocolError`."""
    for name, value in options.items():
        if name not in OPTIONS:
            raise ProtocolError("unknown_option", f"unknown option {shown(name)}, expected one of {', '.join(OPTIONS)}")
        if not isinstance(value, (str, int, float)):
            raise ProtocolError("bad_option", f"{name} is {shown(value)}, expected text or a number")
        if isinstance(value, str):
            _check_text(name, value)
        elif isinstance(value, int) and abs(value) > GREATEST_INTEGER:
            raise ProtocolError("bad_option", f"{name} is {shown(value)}, expected a number of 64 bits at most")
    return dict(options)


def check_values(options: Mapping[str, Any], settings: Settings, voices: Sequence[str]) -> None:
    """Raises `ProtocolError` for what the engine would refuse. No `voices`: the engine alone knows them."""
    voice = options.get("voice")
    known = voices or ([voice.lower()] if isinstance(voice, str) else [DEFAULT_VOICE])
    try:
        options_of(options, settings, known)
    except SettingsError as error:
        raise ProtocolError("bad_option", str(error)) from None


def _check_text(name: str, value: str) -> None:
    """A request parameter's text must be Unicode, and Triton cuts it at a NUL."""
    if not is_unicode(value):
        raise ProtocolError("bad_option", f"{name} holds half a character (a lone surrogate), expected Unicode")
    if "\0" in value:
        raise ProtocolError("bad_option", f"{name} holds a NUL character, expected text without one")


def opened_event(sequence_id: int, settings: Settings) -> Event:
    """The first event: the conversation's id and the formats of both directions."""

    def sound(rate: int, samples: int) -> Event:
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


def event_text(event: Event) -> str:
    """An event as it is sent."""
    return json.dumps(event, ensure_ascii=False)


def error_event(code: str, message: str) -> Event:
    """An error, in words."""
    return {"type": "error", "code": code, "message": message}
