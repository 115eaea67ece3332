"""Every setting has documentation, sources in a fixed order, and a check of its value."""

from __future__ import annotations

import json
import re
from dataclasses import fields

import pytest

from config import Settings, SettingsError
from config.settings import DEFAULTS


def test_environment_overrides_the_file_and_the_file_the_defaults(tmp_path):
    file = tmp_path / "my.toml"
    file.write_text('[bridge]\nport = 9000\nhost = "0.0.0.0"\n[sampling]\ntemperature = 1\n')
    settings = Settings.load(file, environ={"SCA_BRIDGE_PORT": "9001", "SCA_QWEN_MODEL_ID": "/models/q", "PATH": "x"})
    assert (settings.bridge.port, settings.bridge.host) == (9001, "0.0.0.0")
    assert settings.sampling.temperature == 1.0
    assert settings.qwen.model_id == "/models/q"


def test_environment_variable_sets_the_path_of_the_file(tmp_path):
    file = tmp_path / "my.toml"
    file.write_text("[audio]\ntick_ms = 160\n")
    assert Settings.load(environ={"SCA_CONFIG": str(file)}).audio.tick_ms == 160


def test_sampling_comes_from_the_checkpoint_unless_a_source_sets_it(tmp_path):
    """The generation_config.json of a checkpoint has the same effect in vLLM."""
    own = {"do_sample": False, "top_k": 7, "talker_temperature": 0.4, "talker_top_k": 30, "eos_token_id": 3}
    (tmp_path / "generation_config.json").write_text(json.dumps(own))
    environ = {"SCA_QWEN_MODEL_ID": str(tmp_path)}
    sampling = Settings.load(environ=environ).sampling
    assert (sampling.text_temperature, sampling.text_top_k, sampling.text_top_p) == (0, 7, 0.95)
    assert (sampling.temperature, sampling.top_k, sampling.repetition_penalty) == (0.4, 30, 1.05)
    file = tmp_path / "my.toml"
    file.write_text("[sampling]\ntemperature = 1\n")
    sampling = Settings.load(file, environ={**environ, "SCA_SAMPLING_TEXT_TEMPERATURE": "0.5"}).sampling
    assert (sampling.text_temperature, sampling.temperature, sampling.top_k) == (0.5, 1, 30)
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(SettingsError, match=r"generation_config\.json is not JSON"):
        Settings.load(environ=environ)


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        (
            {"SCA_BRIDGE_PROT": "1"},
            "unknown environment variable SCA_BRIDGE_PROT: config/default.toml has no bridge.prot",
        ),
        ({"SCA_NOISE": "1"}, "unknown environment variable SCA_NOISE"),
        ({"SCA_BRIDGE_PORT": "http"}, "bridge.port: expected a whole number, got 'http'"),
        ({"SCA_BRIDGE_PORT": "70000"}, "bridge.port: expected a port, 1 to 65535, got 70000"),
        (
            {"SCA_BRIDGE_TRACES_URL": "here:4318"},
            "bridge.traces_url: expected a URL such as http://localhost:4318/v1/traces, got a value (not shown)",
        ),
        ({"SCA_AUDIO_TICK_MS": "100"}, "audio.tick_ms: expected 80, 160 or 320, got 100"),
        (
            {"SCA_AUDIO_TICK_MS": "80", "SCA_ENGINE_DIALECT": "sca"},
            "engine.text_tokens_per_tick: expected a divisor of the 1 codec frames in a tick of 80 ms, got 2",
        ),
        ({"SCA_ENGINE_SLOTS": "-1"}, "engine.slots: expected a number from 0 (as many as fit) to a million, got -1"),
        ({"SCA_ENGINE_DIALECT": "x"}, "engine.dialect: expected turn or sca, got 'x'"),
        (
            {"SCA_QWEN_TORCH_DTYPE": "int8"},
            "qwen.torch_dtype: expected one of auto, float32, bfloat16, float16, got 'int8'",
        ),
        ({"SCA_QWEN_DEVICE_MAP": "tpu"}, "qwen.device_map: expected auto, cpu, cuda or cuda:N, got 'tpu'"),
        ({"SCA_SAMPLING_TOP_P": "1.5"}, "sampling.top_p: expected a number above 0 and up to 1, got 1.5"),
        ({"SCA_TURN_DETECTION": "loud"}, "turn.detection: expected server_vad or manual, got 'loud'"),
        (
            {"SCA_TURN_EMOTION": "bored"},
            "turn.emotion: expected off, all, or some of neutral, happy, sad, "
            "angry, afraid, surprised, disgusted, got 'bored'",
        ),
        ({"SCA_TURN_LANGUAGE_LABELS": "one"}, "turn.language_labels: expected labels, at least two, got 'one'"),
        ({"SCA_TRITON_INSTANCE": "tpu"}, "triton.instance: expected auto, cpu or gpu, got 'tpu'"),
    ],
)
def test_unknown_or_impossible_setting_is_refused_by_name(environ, message):
    with pytest.raises(SettingsError) as error:
        Settings.load(environ=environ)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("[noise]\nx = 1", "unknown section [noise]"),
        ("[bridge]\nprot = 1", "unknown setting bridge.prot"),
        ("bridge = 1", "[bridge] in"),
        ("[bridge]\nport = true", "bridge.port: expected a whole number, got True"),
        ("[engine]\nslots = 2.5", "engine.slots: expected a whole number, got 2.5"),
        ("[bridge", "is not TOML"),
    ],
)
def test_file_with_an_error_is_refused_by_name(tmp_path, toml, message):
    file = tmp_path / "my.toml"
    file.write_text(toml)
    with pytest.raises(SettingsError) as error:
        Settings.load(file, environ={})
    assert message in str(error.value)


def test_missing_file_is_named_in_the_error():
    with pytest.raises(SettingsError, match="the settings file /no/such.toml cannot be read: No such file"):
        Settings.load("/no/such.toml", environ={})


def test_settings_survive_a_round_trip_through_json():
    settings = Settings.load(environ={"SCA_ENGINE_SYSTEM_PROMPT": 'say "hi"\n — 안녕'})
    assert Settings.from_json(settings.to_json()) == settings


def test_default_toml_has_one_documented_line_for_each_setting():
    """A setting without a line, or a line without a setting, fails."""
    documented = set()
    section = ""
    for line in DEFAULTS.read_text().splitlines():
        if match := re.match(r"\[(\w+)\]", line):
            section = match[1]
        elif match := re.match(r"(\w+) = .+? # \w", line):
            documented.add(f"{section}.{match[1]}")
    settings = Settings.load(environ={})
    known = {f"{s.name}.{f.name}" for s in fields(settings) for f in fields(getattr(settings, s.name))}
    assert documented == known


def test_settings_page_has_each_setting_with_its_default():
    page = (DEFAULTS.parent.parent / "docs" / "settings.md").read_text()
    settings = Settings.load(environ={"SCA_QWEN_MODEL_ID": "random"}).with_values(qwen={"model_id": ""})
    for section in fields(settings):
        for field in fields(getattr(settings, section.name)):
            default = getattr(getattr(settings, section.name), field.name)
            shown = (
                f'`"{default}"`'
                if default == ""
                else f"`{default}`"
                if isinstance(default, str)
                else str(default).lower().removesuffix(".0")
            )
            row = rf"\| `{section.name}\.{field.name}` \| {re.escape(shown)}(\.0)? \|"
            assert re.search(row, page), f"{section.name}.{field.name} with default {shown}"


def test_ice_servers_are_parsed_and_an_invalid_one_is_refused_without_its_password():
    servers = "stun:stun.example:3478, turn:me:secret@turn.example:3478?transport=tcp"
    settings = Settings.load(environ={"SCA_BRIDGE_ICE_SERVERS": servers})
    assert settings.bridge.ice[0] == ("stun:stun.example:3478", None, None)
    assert settings.bridge.ice[1] == ("turn:turn.example:3478?transport=tcp", "me", "secret")
    assert "secret" not in repr(settings)
    with pytest.raises(SettingsError, match=r"bridge\.ice_servers") as refused:
        Settings.load(environ={"SCA_BRIDGE_ICE_SERVERS": "http://me:secret@turn.example"})
    assert "secret" not in str(refused.value)
