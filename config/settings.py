"""The settings of all sections in one frozen object; the reader of the defaults, the file and the environment."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from config.audio import CODE2WAV_DELAY, CODEC_FRAME_MS, INPUT_HZ, MEL_HOP, OUTPUT_HZ, AudioSettings
from config.bridge import BridgeSettings
from config.build import BuildSettings
from config.engine import MAX_PROMPT_CHARACTERS, MAX_TYPED, EngineSettings
from config.loader import SettingsError, expect, from_environment, merge, read_toml, typed
from config.qwen import BARISTA, RANDOM, QwenSettings
from config.sampling import FILE, SamplingSettings, checkpoint_sampling
from config.secret import secrets_of
from config.triton import TritonSettings
from config.turn import TURN_OPTIONS, TurnSettings

__all__ = [
    "BARISTA",
    "CODE2WAV_DELAY",
    "CODEC_FRAME_MS",
    "INPUT_HZ",
    "MAX_PROMPT_CHARACTERS",
    "MAX_TYPED",
    "MEL_HOP",
    "OPTIONS",
    "OUTPUT_HZ",
    "RANDOM",
    "TURN_OPTIONS",
    "AudioSettings",
    "BridgeSettings",
    "BuildSettings",
    "EngineSettings",
    "QwenSettings",
    "SamplingSettings",
    "Settings",
    "TritonSettings",
    "TurnSettings",
]

DEFAULTS = Path(__file__).parent / "default.toml"
OPTIONS = (  # names of the settings that a conversation may choose for itself
    "dialect",
    "voice",
    "system_prompt",
    "seed",
    *(field.name for field in dataclasses.fields(SamplingSettings)),
    *TURN_OPTIONS,
)


@dataclass(frozen=True)
class Settings:
    """The settings of every section. Only `load` reads the environment; the object is passed down from there."""

    qwen: QwenSettings
    audio: AudioSettings
    engine: EngineSettings
    turn: TurnSettings
    sampling: SamplingSettings
    triton: TritonSettings
    build: BuildSettings
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
        """Ticks that a slot's caches hold; at least two, because the first tick is never evicted."""
        return max(2, -(-self.engine.context_s * 1000 // self.audio.tick_ms))

    @classmethod
    def load(cls, file: str | Path | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
        """Read the defaults, then `file` (else $SCA_CONFIG), then SCA_<SECTION>_<KEY>; raise `SettingsError`.

        A value of [sampling] that neither file nor environment sets comes from the generation_config.json of a
        checkpoint that is a local folder.
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
        try:
            return settings.with_values(sampling={**checkpoint_sampling(folder), **chosen["sampling"]})
        except SettingsError as error:
            raise SettingsError(f"{error} (from {folder / FILE}: correct it there, or set another value)") from error

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """Return the settings of a `to_json`, with the defaults of [bridge]."""
        return cls._from_values({**read_toml(DEFAULTS), **json.loads(text)})

    def to_json(self) -> str:
        """Return the settings of Triton's model processes as one line of JSON, which files of the repository contain.

        The section [bridge], which contains secrets, is absent: only the bridge needs it.
        """
        values = dataclasses.asdict(self)
        del values["bridge"]
        return json.dumps(values)

    @property
    def secrets(self) -> set[str]:
        """The texts that no program may show."""
        return secrets_of(dataclasses.asdict(self))

    def with_values(self, **sections: dict[str, Any]) -> Settings:
        """Return a validated copy with some values replaced: `with_values(audio={"tick_ms": 80})`."""
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
