"""The configuration of a session: what the client has requested, merged into what is served, as engine options."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from config import Settings
from frontend.audio.formats import PCM
from frontend.realtime.events import Event
from frontend.realtime.session_changes import UNLIMITED, AudioFormat, SessionChanges, TurnDetection
from frontend.realtime.validation import validate

MODEL = "qwen3-omni"
MAX_MODEL = 100  # characters of a model's name
DEFAULT_VOICE = "ethan"
MIN_ANSWER_TOKENS = 2  # smallest `answer_tokens` of the engine
DEFAULT_FORMAT = AudioFormat(PCM)


class AnswerOptions(NamedTuple):
    """The options of one answer, for the client and for the engine."""

    modality: str  # audio, which has a transcript, or text
    max_output_tokens: int | str
    engine: Event  # options of the section [turn]


class Session:
    """The configuration in effect; `about` describes it for the client."""

    def __init__(
        self,
        session_id: str,
        settings: Settings,
        voices: Sequence[str],
        model: str,
        expires_at: int,
        is_call: bool = False,
    ):
        """Create a session with the defaults; `is_call`: tracks carry the audio, in a format negotiated by SDP."""
        turn, engine = settings.turn, settings.engine
        self._is_call, self._voices = is_call, voices
        self._max_tokens = turn.answer_tokens
        first = voices[0] if voices else DEFAULT_VOICE
        default = engine.voice.lower() or (DEFAULT_VOICE if DEFAULT_VOICE in voices else first)
        self._default_detection: Event = {
            "type": "server_vad",
            "threshold": turn.threshold,
            "prefix_padding_ms": turn.prefix_padding_ms,
            "silence_duration_ms": turn.silence_duration_ms,
            "create_response": turn.create_response,
            "interrupt_response": turn.interrupt,
            "idle_timeout_ms": None,
        }
        self.about: Event = {
            "type": "realtime",
            "object": "realtime.session",
            "id": session_id,
            "model": model or MODEL,
            "output_modalities": ["audio"],
            "instructions": engine.system_prompt,
            "tools": [],
            "tool_choice": "auto",
            "max_output_tokens": UNLIMITED,
            "truncation": "auto",
            "tracing": None,
            "prompt": None,
            "include": None,
            "expires_at": expires_at,
            "audio": {
                "input": {
                    "format": DEFAULT_FORMAT.about,
                    "noise_reduction": None,
                    "transcription": None,
                    "turn_detection": dict(self._default_detection),
                },
                "output": {"format": DEFAULT_FORMAT.about, "voice": default, "speed": 1.0},
            },
        }

    @property
    def instructions(self) -> str:
        """The system prompt."""
        return str(self.about["instructions"])

    @property
    def voice(self) -> str:
        """The speaker."""
        return str(self.about["audio"]["output"]["voice"])

    @property
    def detection(self) -> Event | None:
        """The voice activity detection; None: the client commits."""
        found: Event | None = self.about["audio"]["input"]["turn_detection"]
        return found

    def format(self, side: str) -> str:
        """Return the audio format of `input` or `output`."""
        return str(self.about["audio"][side]["format"]["type"])

    def update(self, wanted: Mapping[str, Any], voice_is_fixed: bool = False) -> None:
        """Merge a client's changes; what is not served is ignored. Raises `RealtimeError`.

        An unknown voice is not an error: `about` names the voice that speaks.
        """
        changes = validate(SessionChanges, wanted, "session")
        about, sent = copy.deepcopy(self.about), changes.model_fields_set
        if "instructions" in sent:
            about["instructions"] = changes.instructions
        if "output_modalities" in sent:
            about["output_modalities"] = [changes.output_modalities]
        if "max_output_tokens" in sent:
            about["max_output_tokens"] = changes.max_output_tokens
        if isinstance(changes.model, str):
            about["model"] = changes.model[:MAX_MODEL]
        audio, voice = changes.audio, changes.audio.output.voice_name
        for side, found in (("input", audio.input.format), ("output", audio.output.format)):
            if found and not self._is_call:
                about["audio"][side]["format"] = found.about
        if voice in self._voices and not voice_is_fixed:
            about["audio"]["output"]["voice"] = voice
        if "turn_detection" in audio.input.model_fields_set:
            about["audio"]["input"]["turn_detection"] = self._merge_detection(audio.input.turn_detection)
        self.about = about

    def _merge_detection(self, changes: TurnDetection | None) -> Event | None:
        if changes is None or changes.type == "none":
            return None
        found = dict(self.detection or self._default_detection)
        if changes.threshold is not None:
            found["threshold"] = min(max(changes.threshold, 0.01), 0.99)
        for name in ("prefix_padding_ms", "silence_duration_ms"):
            if (value := getattr(changes, name)) is not None:
                found[name] = int(value)
        for name in ("create_response", "interrupt_response"):
            if (value := getattr(changes, name)) is not None:
                found[name] = value
        return found

    def turn_options(self) -> Event:
        """Return the engine's options of turns. Without detection a turn is answered only on request."""
        vad, answer = self.detection, self.answer_options().engine
        if vad is None:
            return {"detection": "manual", "create_response": False, **answer}
        return {
            "detection": "server_vad",
            "threshold": vad["threshold"],
            "prefix_padding_ms": vad["prefix_padding_ms"],
            "silence_duration_ms": vad["silence_duration_ms"],
            "create_response": vad["create_response"],
            "interrupt": vad["interrupt_response"],
            **answer,
        }

    def answer_options(self, modality: str | None = None, max_output_tokens: int | str | None = None) -> AnswerOptions:
        """Return the options of one answer, which may have its own modality and length."""
        modality = modality or self.about["output_modalities"][0]
        longest = max_output_tokens or self.about["max_output_tokens"]
        tokens = self._max_tokens if longest == UNLIMITED else max(MIN_ANSWER_TOKENS, int(longest))
        return AnswerOptions(modality, longest, {"answer_tokens": tokens, "speech": modality == "audio"})

    def options(self) -> Event:
        """Return the engine's options at the start of a conversation."""
        return {"voice": self.voice, "system_prompt": self.instructions, **self.turn_options()}
