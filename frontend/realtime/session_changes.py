"""The session that a client requests, as validated changes; the flat names of the protocol's beta are accepted."""

from __future__ import annotations

import copy
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import model_validator

from frontend.audio.formats import PCM, RATES
from frontend.audio.g711 import A_LAW, MU_LAW
from frontend.realtime.events import Event
from frontend.realtime.validation import Instructions, Model, Optional, UnmetError, field

BETA_FORMATS = {"pcm16": PCM, "g711_ulaw": MU_LAW, "g711_alaw": A_LAW}
BETA_NAMES = {
    "modalities": ("output_modalities",),
    "max_response_output_tokens": ("max_output_tokens",),
    "input_audio_format": ("audio", "input", "format"),
    "turn_detection": ("audio", "input", "turn_detection"),
    "output_audio_format": ("audio", "output", "format"),
    "voice": ("audio", "output", "voice"),
}
MAX_OUTPUT_TOKENS = 100_000
UNLIMITED = "inf"


class AudioFormat(NamedTuple):
    """An audio format of the protocol."""

    type: str  # one of RATES

    @property
    def about(self) -> Event:
        """The format as an object of the protocol."""
        return {"type": self.type, "rate": RATES[self.type]} if self.type == PCM else {"type": self.type}


def audio_format(value: Any) -> AudioFormat:
    """Return the format of a name or an object. Raises `UnmetError`."""
    kind = value.get("type") if isinstance(value, dict) else value
    kind = BETA_FORMATS.get(kind, kind) if isinstance(kind, str) else kind
    if not isinstance(kind, str) or kind not in RATES:
        raise UnmetError(f"one of {', '.join(RATES)}")
    rate = value.get("rate") if isinstance(value, dict) else None
    if kind == PCM and rate not in (None, RATES[kind]):
        raise UnmetError(f"{RATES[kind]}", got=f"{rate!r:.40}", field="rate")
    return AudioFormat(kind)


def modality(value: Any) -> str:
    """Return `audio` or `text` of a list of modalities; audio has text too. Raises `UnmetError`."""
    if not isinstance(value, list) or not value or any(part not in ("text", "audio") for part in value):
        raise UnmetError("['audio'] or ['text']")
    return "audio" if "audio" in value else "text"


def output_tokens(value: Any) -> int | str:
    """Return the largest number of text tokens of an answer, or `UNLIMITED`. Raises `UnmetError`."""
    if value is None or value == UNLIMITED:
        return UNLIMITED
    if type(value) is not int or not 1 <= value <= MAX_OUTPUT_TOKENS:
        raise UnmetError(f"{UNLIMITED!r} or a whole number from 1 to {MAX_OUTPUT_TOKENS}")
    return value


def _number(min_value: float, max_value: float) -> Any:
    """Return the validator of a number in a range."""

    def check(value: Any) -> float | None:
        is_number = not isinstance(value, bool) and isinstance(value, (int, float))
        if value is not None and not (is_number and min_value <= value <= max_value):
            raise UnmetError(f"a number from {min_value} to {max_value}")
        return None if value is None else float(value)

    return field(check)


Modality = Annotated[str, field(modality)]
OutputTokens = Annotated[int | str, field(output_tokens)]
Format = Annotated[AudioFormat | None, field(lambda value: None if value is None else audio_format(value))]


class TurnDetection(Model):
    """Changes of the detection of turns; `semantic_vad` is served by `server_vad`, `none` is early clients' null."""

    type: Literal["server_vad", "semantic_vad", "none"] = "server_vad"
    threshold: Annotated[float | None, _number(0.0, 1.0)] = None
    prefix_padding_ms: Annotated[float | None, _number(0, 5000)] = None
    silence_duration_ms: Annotated[float | None, _number(0, 10_000)] = None
    create_response: bool | None = None
    interrupt_response: bool | None = None


class InputChanges(Model):
    """Changes of the client's audio; `turn_detection` may be null."""

    format: Format = None
    turn_detection: TurnDetection | None = None


class OutputChanges(Model):
    """Changes of the assistant's audio; a voice may be a name or an object."""

    format: Format = None
    voice: Any = None

    @property
    def voice_name(self) -> str | None:
        """The voice, if it is a name."""
        name = self.voice.get("id") if isinstance(self.voice, dict) else self.voice
        return name.lower() if isinstance(name, str) else None


class AudioChanges(Model):
    """Changes of both sides."""

    input: Annotated[InputChanges, Optional] = InputChanges()
    output: Annotated[OutputChanges, Optional] = OutputChanges()


class SessionChanges(Model):
    """The fields of a session that a client may change; only fields that were sent are in `model_fields_set`."""

    type: Literal["realtime"] = "realtime"
    model: Any = None
    instructions: Instructions = ""
    output_modalities: Modality = "audio"
    max_output_tokens: OutputTokens = UNLIMITED
    audio: Annotated[AudioChanges, Optional] = AudioChanges()

    @model_validator(mode="before")
    @classmethod
    def _rename(cls, wanted: Any) -> Any:
        return from_beta(wanted) if isinstance(wanted, dict) else wanted


def from_beta(wanted: Event) -> Event:
    """Return a session or a response in which the beta's flat names are today's; today's names win."""
    if not BETA_NAMES.keys() & wanted.keys():
        return wanted
    wanted = copy.deepcopy(wanted)
    for name, (*parents, last) in BETA_NAMES.items():
        if name in wanted:
            target: Any = wanted
            for parent in parents:
                target = target.setdefault(parent, {}) if isinstance(target, dict) else None
            if isinstance(target, dict):
                target.setdefault(last, wanted[name])
    return wanted
