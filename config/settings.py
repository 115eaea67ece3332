"""One frozen object with every setting, validated where it is read."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEFAULTS = Path(__file__).parent / "default.toml"
NOT_SETTINGS = {"SCA_VENV", "SCA_PYTHON", "SCA_CONFIG"}  # read by ./sca itself

TRUTHS = {"true": True, "1": True, "false": False, "0": False}

CODEC_FRAME_MS = 80  # a codec frame, and also an audio token of the thinker
INPUT_HZ = 16_000  # the microphone's rate
OUTPUT_HZ = 24_000  # code2wav's rate
MEL_HOP = 160  # input samples a mel frame


class SettingsError(ValueError):
    """A setting is unknown or impossible; the message names it, what came and what was expected."""


def _expect(holds: bool, name: str, value: object, expected: str) -> None:
    if not holds:
        raise SettingsError(f"{name} is {value!r}, expected {expected}")


@dataclass(frozen=True)
class QwenSettings:
    """Which checkpoint, and how it is loaded."""

    model_id: str
    device_map: str
    torch_dtype: str
    lora: str

    def __post_init__(self) -> None:
        known = self.device_map in ("auto", "cpu", "cuda") or re.fullmatch(r"cuda:\d+", self.device_map) is not None
        _expect(known, "qwen.device_map", self.device_map, "auto, cpu, cuda or cuda:N")
        dtypes = ("auto", "float32", "bfloat16", "float16")
        _expect(self.torch_dtype in dtypes, "qwen.torch_dtype", self.torch_dtype, "one of " + ", ".join(dtypes))


@dataclass(frozen=True)
class AudioSettings:
    """The clock of the system; everything that follows from the tick's length."""

    tick_ms: int

    def __post_init__(self) -> None:
        _expect(self.tick_ms in (80, 160, 320), "audio.tick_ms", self.tick_ms, "80, 160 or 320")

    @property
    def codec_frames(self) -> int:
        """Codec frames, and also audio tokens, of a tick."""
        return self.tick_ms // CODEC_FRAME_MS

    @property
    def input_samples(self) -> int:
        """Samples of a tick at 16 kHz."""
        return self.tick_ms * INPUT_HZ // 1000

    @property
    def output_samples(self) -> int:
        """Samples of a tick at 24 kHz."""
        return self.tick_ms * OUTPUT_HZ // 1000

    @property
    def mel_frames(self) -> int:
        """Log-mel frames of a tick."""
        return self.input_samples // MEL_HOP


@dataclass(frozen=True)
class EngineSettings:
    """The engine's slots, and the defaults of a conversation."""

    dialect: str
    voice: str
    system_prompt: str
    text_tokens_per_tick: int
    slots: int
    context_s: int
    context_full: str
    prompt_positions: int
    prompts_kept: int
    memory_share: float
    cuda_graphs: bool
    cpu_threads: int
    idle_timeout_s: float

    def __post_init__(self) -> None:
        _expect(self.dialect == "sca", "engine.dialect", self.dialect, "sca")
        _expect(self.context_full in ("slide", "stop"), "engine.context_full", self.context_full, "slide or stop")
        _expect(0 <= self.slots < 1e6, "engine.slots", self.slots, "a number from 0 (as many as fit) to a million")
        _expect(0 < self.memory_share <= 1, "engine.memory_share", self.memory_share, "a share above 0 and up to 1")
        for name in (
            "text_tokens_per_tick",
            "context_s",
            "prompt_positions",
            "prompts_kept",
            "cpu_threads",
            "idle_timeout_s",
        ):
            value = getattr(self, name)
            _expect(0 < value < 1e6, f"engine.{name}", value, "a number above 0 and below a million")


@dataclass(frozen=True)
class SamplingSettings:
    """How tokens and codes are drawn; a conversation's options may override each."""

    text_temperature: float
    temperature: float
    top_k: int
    top_p: float
    repetition_penalty: float

    def __post_init__(self) -> None:
        for name in ("text_temperature", "temperature"):
            _expect(0 <= getattr(self, name) <= 5, f"sampling.{name}", getattr(self, name), "a number from 0 to 5")
        _expect(self.top_k >= 0, "sampling.top_k", self.top_k, "a whole number from 0")
        _expect(0 < self.top_p <= 1, "sampling.top_p", self.top_p, "a number above 0 and up to 1")
        _expect(
            1 <= self.repetition_penalty <= 5,
            "sampling.repetition_penalty",
            self.repetition_penalty,
            "a number from 1 to 5",
        )


OPTIONS = (  # what a conversation may choose for itself
    "dialect",
    "voice",
    "system_prompt",
    "seed",
    *(field.name for field in dataclasses.fields(SamplingSettings)),
)


@dataclass(frozen=True)
class TritonSettings:
    """Triton's endpoints and how it runs the two ONNX models."""

    host: str
    http_port: int
    grpc_port: int
    metrics_port: int
    instance: str
    onnx_precision: str
    queue_delay_us: int
    start_timeout_s: float

    def __post_init__(self) -> None:
        for name in ("http_port", "grpc_port", "metrics_port"):
            _expect(0 < getattr(self, name) < 65536, f"triton.{name}", getattr(self, name), "a port, 1 to 65535")
        _expect(self.instance in ("auto", "cpu", "gpu"), "triton.instance", self.instance, "auto, cpu or gpu")
        precisions = ("float32", "float16")
        _expect(self.onnx_precision in precisions, "triton.onnx_precision", self.onnx_precision, "float32 or float16")
        _expect(self.queue_delay_us >= 0, "triton.queue_delay_us", self.queue_delay_us, "a number from 0")
        _expect(self.start_timeout_s > 0, "triton.start_timeout_s", self.start_timeout_s, "a number above 0")


@dataclass(frozen=True)
class BridgeSettings:
    """The WebSocket bridge and its limits."""

    host: str
    port: int
    max_frame_bytes: int
    ticks_in_flight: int
    response_timeout_s: float

    def __post_init__(self) -> None:
        _expect(0 < self.port < 65536, "bridge.port", self.port, "a port, 1 to 65535")
        for name in ("max_frame_bytes", "ticks_in_flight", "response_timeout_s"):
            _expect(getattr(self, name) > 0, f"bridge.{name}", getattr(self, name), "a number above 0")


@dataclass(frozen=True)
class Settings:
    """Every setting. Made by `load`, handed down; nothing else reads the environment."""

    qwen: QwenSettings
    audio: AudioSettings
    engine: EngineSettings
    sampling: SamplingSettings
    triton: TritonSettings
    bridge: BridgeSettings

    def __post_init__(self) -> None:
        frames, tokens = self.audio.codec_frames, self.engine.text_tokens_per_tick
        _expect(
            frames % tokens == 0,
            "engine.text_tokens_per_tick",
            tokens,
            f"a divisor of the {frames} codec frames in a tick of {self.audio.tick_ms} ms",
        )

    @property
    def context_ticks(self) -> int:
        """Ticks that a slot's caches hold; never one alone, since the first stays when the oldest leave."""
        return max(2, -(-self.engine.context_s * 1000 // self.audio.tick_ms))

    @classmethod
    def load(cls, file: str | Path | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
        """Defaults, then `file` (else $SCA_CONFIG), then SCA_<SECTION>_<KEY>; raises `SettingsError`."""
        values = tomllib.loads(DEFAULTS.read_text(encoding="utf-8"))
        file = file or environ.get("SCA_CONFIG")
        if file:
            _merge(values, _read_toml(Path(file)), source=str(file))
        _merge(values, _from_environment(values, environ), source="the environment")
        return cls._from_values(values)

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """The inverse of `to_json`: how settings travel into Triton's model processes."""
        return cls._from_values(json.loads(text))

    def to_json(self) -> str:
        """All settings as one line of JSON."""
        return json.dumps(dataclasses.asdict(self))

    def with_values(self, **sections: dict[str, Any]) -> Settings:
        """A copy with some values replaced, validated again: `with_values(audio={"tick_ms": 80})`."""
        values = dataclasses.asdict(self)
        _merge(values, sections, source="with_values")
        return self._from_values(values)

    @classmethod
    def _from_values(cls, values: dict[str, dict[str, Any]]) -> Settings:
        sections = {}
        for section, section_type in get_type_hints(cls).items():
            types = get_type_hints(section_type)
            typed = {key: _typed(f"{section}.{key}", value, types[key]) for key, value in values[section].items()}
            sections[section] = section_type(**typed)
        return cls(**sections)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"the settings file {path} cannot be read: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"the settings file {path} is not TOML: {error}") from error


def _merge(values: dict[str, Any], changes: Mapping[str, Any], source: str) -> None:
    for section, keys in changes.items():
        if section not in values:
            raise SettingsError(f"unknown section [{section}] in {source}, expected one of {', '.join(values)}")
        if not isinstance(keys, dict):
            raise SettingsError(f"[{section}] in {source} is {keys!r}, expected a table of settings")
        for key, value in keys.items():
            if key not in values[section]:
                known = ", ".join(values[section])
                raise SettingsError(f"unknown setting {section}.{key} in {source}, expected one of {known}")
            values[section][key] = value


def _from_environment(values: dict[str, Any], environ: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """SCA_<SECTION>_<KEY> variables as a table; an SCA_ name that fits no setting is refused."""
    changes: dict[str, dict[str, str]] = {}
    for variable, value in environ.items():
        if not variable.startswith("SCA_") or variable in NOT_SETTINGS:
            continue
        section, _, key = variable.removeprefix("SCA_").lower().partition("_")
        if key not in values.get(section, {}):
            raise SettingsError(f"unknown environment variable {variable}: config/default.toml has no {section}.{key}")
        changes.setdefault(section, {})[key] = value
    return changes


def _typed(name: str, value: Any, expected: type) -> Any:
    """`value` as `expected`; text, as the environment gives it, is read as a number where one is expected."""
    words = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}[expected]
    if isinstance(value, str) and expected is bool and value.lower() in TRUTHS:
        return TRUTHS[value.lower()]
    if isinstance(value, str) and expected in (int, float):
        try:
            return expected(value)
        except ValueError as error:
            raise SettingsError(f"{name} is {value!r}, expected {words}") from error
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
        raise SettingsError(f"{name} is {value!r}, expected {words}")
    return value
