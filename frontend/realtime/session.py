"""A session's settings: what a client asks for, merged into what is really done, and the engine's options from it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from config import Settings
from config.loader import shown
from config.settings import MAX_PROMPT_CHARACTERS
from frontend.audio.formats import RATES
from frontend.realtime.events import Event, RealtimeError, expect_text

BETA_FORMATS = {"pcm16": "audio/pcm", "g711_ulaw": "audio/pcmu", "g711_alaw": "audio/pcma"}
VAD_NUMBERS = {"threshold": (0.0, 1.0), "prefix_padding_ms": (0, 5000), "silence_duration_ms": (0, 10_000)}
MODEL = "qwen3-omni"


class Session:
    """What a session does. `about` is what clients are told; partial updates are merged into it."""

    def __init__(
        self,
        session_id: str,
        settings: Settings,
        voices: Sequence[str],
        model: str,
        expires_at: int,
        is_call: bool = False,
    ):
        """`is_call`: its sound goes in tracks, whose format was agreed on elsewhere."""
        turn, engine = settings.turn, settings.engine
        self._is_call = is_call
        self._voices, self._answer_tokens = voices, turn.answer_tokens
        default = engine.voice.lower() or ("ethan" if "ethan" in voices or not voices else voices[0])
        self.about: Event = {
            "type": "realtime",
            "object": "realtime.session",
            "id": session_id,
            "model": model or MODEL,
            "output_modalities": ["audio"],
            "instructions": engine.system_prompt,
            "tools": [],
            "tool_choice": "auto",
            "max_output_tokens": "inf",
            "truncation": "auto",
            "tracing": None,
            "prompt": None,
            "include": None,
            "expires_at": expires_at,
            "audio": {
                "input": {
                    "format": {"type": "audio/pcm", "rate": 24_000},
                    "noise_reduction": None,
                    "transcription": None,
                    "turn_detection": {
                        "type": "server_vad",
                        "threshold": turn.threshold,
                        "prefix_padding_ms": turn.prefix_padding_ms,
                        "silence_duration_ms": turn.silence_duration_ms,
                        "create_response": turn.create_response,
                        "interrupt_response": turn.interrupt,
                        "idle_timeout_ms": None,
                    },
                },
                "output": {"format": {"type": "audio/pcm", "rate": 24_000}, "voice": default, "speed": 1.0},
            },
        }
        self._default_vad = dict(self.about["audio"]["input"]["turn_detection"])

    @property
    def instructions(self) -> str:
        """The system prompt."""
        return str(self.about["instructions"])

    @property
    def voice(self) -> str:
        """The speaker."""
        return str(self.about["audio"]["output"]["voice"])

    @property
    def modality(self) -> str:
        """What responses are made of: `audio`, which has a transcript, or `text`."""
        return str(self.about["output_modalities"][0])

    @property
    def detection(self) -> Event | None:
        """The voice activity detection; None: the client commits."""
        found: Event | None = self.about["audio"]["input"]["turn_detection"]
        return found

    def format(self, side: str) -> str:
        """The type of sound of `input` or `output`."""
        return str(self.about["audio"][side]["format"]["type"])

    def update(self, wanted: Event, voice_is_fixed: bool = False) -> None:
        """Merges what is known of `wanted`, the beta's names too; the rest is left out. Raises `RealtimeError`."""
        changed = copy.deepcopy(self.about)
        kind = wanted.get("type", "realtime")
        if kind != "realtime":
            raise RealtimeError(f"session.type is {shown(kind)}, expected 'realtime'", param="session.type")
        wanted = _from_beta(wanted)
        if "instructions" in wanted:
            changed["instructions"] = instructions(wanted["instructions"], "session.instructions")
        if "output_modalities" in wanted:
            changed["output_modalities"] = modalities(wanted["output_modalities"])
        if "max_output_tokens" in wanted:
            changed["max_output_tokens"] = output_tokens(wanted["max_output_tokens"])
        if "model" in wanted and isinstance(wanted["model"], str):
            changed["model"] = wanted["model"][:100]
        audio = object_of(wanted, "audio")
        for side in ("input", "output"):
            asked = object_of(audio, side)
            if asked.get("format") is not None:
                found = sound_format(asked["format"], f"session.audio.{side}.format")
                if not self._is_call:
                    changed["audio"][side]["format"] = found
        self._update_voice(changed, object_of(audio, "output"), voice_is_fixed)
        self._update_detection(changed, object_of(audio, "input"))
        self.about = changed

    def _update_voice(self, changed: Event, output: Event, is_fixed: bool) -> None:
        """A voice that is not here is not an error: the session says which one speaks."""
        voice = output.get("voice")
        if isinstance(voice, dict):
            voice = voice.get("id")
        if isinstance(voice, str) and voice.lower() in self._voices and not is_fixed:
            changed["audio"]["output"]["voice"] = voice.lower()

    def _update_detection(self, changed: Event, asked: Event) -> None:
        if "turn_detection" not in asked:
            return
        wanted = asked["turn_detection"]
        if wanted is None:
            changed["audio"]["input"]["turn_detection"] = None
            return
        name = "session.audio.input.turn_detection"
        if not isinstance(wanted, dict) or wanted.get("type", "server_vad") not in (
            "server_vad",
            "semantic_vad",
            "none",
        ):
            raise RealtimeError(f"{name} is {shown(wanted)}, expected server_vad, semantic_vad or null", param=name)
        if wanted.get("type") == "none":  # of early clients
            changed["audio"]["input"]["turn_detection"] = None
            return
        found = dict(changed["audio"]["input"]["turn_detection"] or self._default_vad)
        for key, (least, most) in VAD_NUMBERS.items():
            value = wanted.get(key)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
                message = f"{name}.{key} is {shown(value)}, expected a number from {least} to {most}"
                raise RealtimeError(message, param=f"{name}.{key}")
            found[key] = min(max(float(value), 0.01), 0.99) if key == "threshold" else int(value)
        for key in ("create_response", "interrupt_response"):
            if wanted.get(key) is not None:
                if not isinstance(wanted[key], bool):
                    raise RealtimeError(f"{name}.{key} is {shown(wanted[key])}, expected true or false", param=name)
                found[key] = wanted[key]
        changed["audio"]["input"]["turn_detection"] = found

    def turn_options(self) -> Event:
        """The engine's options of turns. Commits ask for no answer: `response.create` does."""
        vad, answers = self.detection, self.answer_options(None, None)
        if vad is None:
            return {"detection": "manual", "create_response": False, **answers}
        return {
            "detection": "server_vad",
            "threshold": vad["threshold"],
            "prefix_padding_ms": vad["prefix_padding_ms"],
            "silence_duration_ms": vad["silence_duration_ms"],
            "create_response": vad["create_response"],
            "interrupt": vad["interrupt_response"],
            **answers,
        }

    def answer_options(self, modality: str | None, most: int | str | None) -> Event:
        """The engine's options of one answer, whose response may have its own of both."""
        most = most or self.about["max_output_tokens"]
        tokens = self._answer_tokens if most == "inf" else max(2, int(most))
        return {"answer_tokens": tokens, "speech": (modality or self.modality) == "audio"}

    def options(self) -> Event:
        """The engine's options at the start of a conversation."""
        return {"voice": self.voice, "system_prompt": self.instructions, **self.turn_options()}


def instructions(value: Any, name: str) -> str:
    """A system prompt; "" for null. Raises `RealtimeError`."""
    text = expect_text("" if value is None else value, name)
    if len(text) > MAX_PROMPT_CHARACTERS:
        message = f"{name} are {len(text)} characters long, expected at most {MAX_PROMPT_CHARACTERS}"
        raise RealtimeError(message, code="string_above_max_length", param=name)
    return text


def modalities(value: Any) -> list[str]:
    """`["audio"]` or `["text"]`; the beta's `["text", "audio"]` is the first. Raises `RealtimeError`."""
    if not isinstance(value, list) or not value or any(part not in ("text", "audio") for part in value):
        raise RealtimeError(
            f"output_modalities are {shown(value)}, expected ['audio'] or ['text']", param="output_modalities"
        )
    return ["audio"] if "audio" in value else ["text"]


def output_tokens(value: Any) -> int | str:
    """`inf`, or how many text tokens an answer has at most. Raises `RealtimeError`."""
    if value is None or value == "inf":
        return "inf"
    if type(value) is not int or not 1 <= value <= 100_000:
        raise RealtimeError(
            f"max_output_tokens is {shown(value)}, expected 'inf' or a number from 1", param="max_output_tokens"
        )
    return value


def _from_beta(wanted: Event) -> Event:
    """The flat names of the beta as today's."""
    wanted = copy.deepcopy(wanted)
    if "modalities" in wanted:
        wanted.setdefault("output_modalities", wanted["modalities"])
    if "max_response_output_tokens" in wanted:
        wanted.setdefault("max_output_tokens", wanted["max_response_output_tokens"])
    moved = {
        ("input", "format"): "input_audio_format",
        ("output", "format"): "output_audio_format",
        ("output", "voice"): "voice",
        ("input", "turn_detection"): "turn_detection",
    }
    for (side, name), beta in moved.items():
        if beta in wanted:
            audio = wanted.setdefault("audio", {})
            if isinstance(audio, dict) and isinstance(audio.setdefault(side, {}), dict):
                audio[side].setdefault(name, wanted[beta])
    return wanted


def object_of(parent: Event, name: str, whole: str = "session") -> Event:
    """An object in another, empty where there is none. Raises `RealtimeError`."""
    value = parent.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise RealtimeError(f"{whole}'s {name} is {shown(value)}, expected an object", param=f"{whole}.{name}")
    return value


def sound_format(value: Any, name: str) -> Event:
    """A format of the protocol, by its name or as an object. Raises `RealtimeError`."""
    kind = value.get("type") if isinstance(value, dict) else value
    kind = BETA_FORMATS.get(kind, kind) if isinstance(kind, str) else kind
    if not isinstance(kind, str) or kind not in RATES:
        raise RealtimeError(f"{name} is {shown(value)}, expected one of {', '.join(RATES)}", param=name)
    rate = value.get("rate") if isinstance(value, dict) else None
    if kind == "audio/pcm" and rate not in (None, RATES[kind]):
        raise RealtimeError(f"{name}.rate is {shown(rate)}, expected {RATES[kind]}", param=f"{name}.rate")
    return {"type": kind, "rate": RATES[kind]} if kind == "audio/pcm" else {"type": kind}
