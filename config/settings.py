"""One frozen object with every setting, validated where it is read."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from config.bridge import BridgeSettings
from config.generation import sampling_of
from config.loader import expect, from_environment, listed, merge, read_toml, typed

DEFAULTS = Path(__file__).parent / "default.toml"
BARISTA = Path(__file__).parent.parent / "checkpoints" / "barista"  # the default checkpoint
RANDOM = "random"  # the name of the checkpoint of random weights

DIALECTS = ("turn", "sca")
MAX_TYPED = 4000  # characters of a typed message: some ten pieces, which are read in its tick
MAX_PROMPT_CHARACTERS = 20_000  # of a system prompt: what is longer is not even tokenized
CODEC_FRAME_MS = 80  # a codec frame, and also an audio token of the thinker
INPUT_HZ = 16_000  # the microphone's rate
OUTPUT_HZ = 24_000  # code2wav's rate
CODE2WAV_DELAY = 555  # samples by which its stream is behind its codes
MEL_HOP = 160  # input samples a mel frame


@dataclass(frozen=True)
class QwenSettings:
    """Which checkpoint, and how it is loaded."""

    model_id: str
    device_map: str
    torch_dtype: str
    lora: str

    def __post_init__(self) -> None:
        known = self.device_map in ("auto", "cpu", "cuda") or re.fullmatch(r"cuda:\d+", self.device_map) is not None
        expect(known, "qwen.device_map", self.device_map, "auto, cpu, cuda or cuda:N")
        dtypes = ("auto", "float32", "bfloat16", "float16")
        expect(self.torch_dtype in dtypes, "qwen.torch_dtype", self.torch_dtype, "one of " + ", ".join(dtypes))

    @property
    def folder(self) -> Path | None:
        """The checkpoint's folder; None for a name on the hub and for random weights."""
        if self.model_id == RANDOM:
            return None
        folder = Path(self.model_id) if self.model_id else BARISTA
        return folder if folder.is_dir() else None


@dataclass(frozen=True)
class AudioSettings:
    """The clock of the system; everything that follows from the tick's length."""

    tick_ms: int

    def __post_init__(self) -> None:
        expect(self.tick_ms in (80, 160, 320), "audio.tick_ms", self.tick_ms, "80, 160 or 320")

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
    prefill_tokens: int
    tick_share: float
    cuda_graphs: bool
    cpu_threads: int
    idle_timeout_s: float

    def __post_init__(self) -> None:
        expect(self.dialect in DIALECTS, "engine.dialect", self.dialect, " or ".join(DIALECTS))
        expect(self.context_full in ("slide", "stop"), "engine.context_full", self.context_full, "slide or stop")
        expect(0 <= self.slots < 1e6, "engine.slots", self.slots, "a number from 0 (as many as fit) to a million")
        for name in ("memory_share", "tick_share"):
            expect(0 < getattr(self, name) <= 1, f"engine.{name}", getattr(self, name), "a share above 0 and up to 1")
        for name in (
            "text_tokens_per_tick",
            "context_s",
            "prompt_positions",
            "prompts_kept",
            "prefill_tokens",
            "cpu_threads",
            "idle_timeout_s",
        ):
            value = getattr(self, name)
            expect(0 < value < 1e6, f"engine.{name}", value, "a number above 0 and below a million")


@dataclass(frozen=True)
class SamplingSettings:
    """How tokens and codes are drawn; a conversation's options may override each."""

    text_temperature: float
    text_top_k: int
    text_top_p: float
    temperature: float
    top_k: int
    top_p: float
    repetition_penalty: float

    def __post_init__(self) -> None:
        for name in ("text_temperature", "temperature"):
            expect(0 <= getattr(self, name) <= 5, f"sampling.{name}", getattr(self, name), "a number from 0 to 5")
        for name in ("text_top_k", "top_k"):
            expect(0 <= getattr(self, name) < 2**31, f"sampling.{name}", getattr(self, name), "a whole number from 0")
        for name in ("text_top_p", "top_p"):
            expect(
                0 < getattr(self, name) <= 1, f"sampling.{name}", getattr(self, name), "a number above 0 and up to 1"
            )
        expect(
            1 <= self.repetition_penalty <= 5,
            "sampling.repetition_penalty",
            self.repetition_penalty,
            "a number from 1 to 5",
        )


@dataclass(frozen=True)
class TurnSettings:
    """The dialect `turn`: when the user's turn begins and ends, and how far an answer goes."""

    detection: str
    threshold: float
    prefix_padding_ms: int
    silence_duration_ms: int
    create_response: bool
    interrupt: bool
    interrupt_after_ms: int
    speech: bool
    answer_tokens: int
    answer_frames: int
    heard_tokens_per_s: float
    emotion: str
    emotion_labels: str
    language: str
    language_labels: str

    def __post_init__(self) -> None:
        expect(self.detection in DETECTIONS, "turn.detection", self.detection, " or ".join(DETECTIONS))
        expect(0 < self.threshold < 1, "turn.threshold", self.threshold, "a probability between 0 and 1")
        for name, most in (("prefix_padding_ms", 5000), ("silence_duration_ms", 10_000), ("interrupt_after_ms", 5000)):
            value = getattr(self, name)
            expect(0 <= value <= most, f"turn.{name}", value, f"milliseconds, 0 to {most}")
        for name in ("answer_tokens", "answer_frames"):
            expect(2 <= getattr(self, name) < 1e6, f"turn.{name}", getattr(self, name), "a number from 2 to a million")
        rate = self.heard_tokens_per_s
        expect(0 < rate <= 12.5, "turn.heard_tokens_per_s", rate, "a number above 0 and up to 12.5, one a codec frame")
        for name in ("emotion", "language"):
            known = self.labels(name)
            expect(len(known) > 1, f"turn.{name}_labels", getattr(self, f"{name}_labels"), "labels, at least two")
            strange = [label for label in self.asked(name) if label not in known]
            expect(not strange, f"turn.{name}", getattr(self, name), f"off, all, or some of {', '.join(known)}")
            expect(len(self.asked(name)) != 1, f"turn.{name}", getattr(self, name), "off, all, or at least two labels")

    def labels(self, name: str) -> tuple[str, ...]:
        """All labels that are configured for `emotion` or `language`."""
        return listed(getattr(self, f"{name}_labels"))

    def asked(self, name: str) -> tuple[str, ...]:
        """The labels among which the model is asked to choose; none when it is not asked."""
        wanted: str = getattr(self, name)
        if wanted in ("", "off"):
            return ()
        return self.labels(name) if wanted == "all" else listed(wanted)


DETECTIONS = ("server_vad", "manual")
SERVER_ALONE = ("heard_tokens_per_s", "emotion_labels", "language_labels")  # of [turn]: no conversation chooses these
TURN_OPTIONS = tuple(f.name for f in dataclasses.fields(TurnSettings) if f.name not in SERVER_ALONE)
OPTIONS = (  # what a conversation may choose for itself
    "dialect",
    "voice",
    "system_prompt",
    "seed",
    *(field.name for field in dataclasses.fields(SamplingSettings)),
    *TURN_OPTIONS,
)


@dataclass(frozen=True)
class TritonSettings:
    """Triton's endpoints and how it runs the two ONNX models."""

    host: str
    http_port: int
    grpc_port: int
    others: str
    replicas: int
    metrics_port: int
    instance: str
    onnx_precision: str
    queue_delay_us: int
    start_timeout_s: float

    def __post_init__(self) -> None:
        expect(0 <= self.http_port < 65536, "triton.http_port", self.http_port, "a port, or 0 for none")
        for name in ("grpc_port", "metrics_port"):
            expect(0 < getattr(self, name) < 65536, f"triton.{name}", getattr(self, name), "a port, 1 to 65535")
        for server in listed(self.others):
            port = server.rpartition(":")[2]
            is_server = ":" in server and port.isdigit() and 0 < int(port) < 65536
            expect(is_server, "triton.others", server, "servers such as 10.0.0.7:8001, by commas")
        expect(self.replicas >= 1, "triton.replicas", self.replicas, "a number from 1")
        expect(self.instance in ("auto", "cpu", "gpu"), "triton.instance", self.instance, "auto, cpu or gpu")
        precisions = ("float32", "float16")
        expect(self.onnx_precision in precisions, "triton.onnx_precision", self.onnx_precision, "float32 or float16")
        expect(self.queue_delay_us >= 0, "triton.queue_delay_us", self.queue_delay_us, "a number from 0")
        expect(self.start_timeout_s > 0, "triton.start_timeout_s", self.start_timeout_s, "a number above 0")

    @property
    def urls(self) -> tuple[str, ...]:
        """The gRPC endpoints of all servers, the first one's first."""
        return (f"{self.host}:{self.grpc_port}", *listed(self.others))


@dataclass(frozen=True)
class Settings:
    """Every setting. Made by `load`, handed down; nothing else reads the environment."""

    qwen: QwenSettings
    audio: AudioSettings
    engine: EngineSettings
    turn: TurnSettings
    sampling: SamplingSettings
    triton: TritonSettings
    bridge: BridgeSettings

    def __post_init__(self) -> None:
        frames, tokens = self.audio.codec_frames, self.engine.text_tokens_per_tick
        expect(
            self.engine.dialect != "sca" or frames % tokens == 0,
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
        """Defaults, then `file` (else $SCA_CONFIG), then SCA_<SECTION>_<KEY>; raises `SettingsError`.

        What neither names of [sampling] comes from the checkpoint's generation_config.json, where it is a local folder.
        """
        values = read_toml(DEFAULTS)
        chosen: dict[str, dict[str, Any]] = {section: {} for section in values}
        file = file or environ.get("SCA_CONFIG")
        for changes, source in (
            (read_toml(Path(file)) if file else {}, str(file)),
            (from_environment(values, environ), "the environment"),
        ):
            merge(values, changes, source)
            for section, keys in changes.items():
                chosen[section].update(keys)
        settings = cls._from_values(values)
        folder = settings.qwen.folder
        if folder is None:
            return settings
        return settings.with_values(sampling={**sampling_of(folder), **chosen["sampling"]})

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """The inverse of `to_json`: how settings travel into Triton's model processes."""
        return cls._from_values(json.loads(text))

    def to_json(self) -> str:
        """All settings as one line of JSON, but for the API keys: they are the bridge's alone."""
        values = dataclasses.asdict(self)
        values["bridge"]["api_keys"] = ""
        return json.dumps(values)

    def with_values(self, **sections: dict[str, Any]) -> Settings:
        """A copy with some values replaced, validated again: `with_values(audio={"tick_ms": 80})`."""
        values = dataclasses.asdict(self)
        merge(values, sections, source="with_values")
        return self._from_values(values)

    @classmethod
    def _from_values(cls, values: dict[str, dict[str, Any]]) -> Settings:
        sections = {}
        for section, section_type in get_type_hints(cls).items():
            types = get_type_hints(section_type)
            sections[section] = section_type(
                **{key: typed(f"{section}.{key}", value, types[key]) for key, value in values[section].items()}
            )
        return cls(**sections)
