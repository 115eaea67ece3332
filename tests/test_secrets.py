"""No program shows a secret: neither in its output, nor in logs, metrics, command lines or exported files."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from commands.bridge import bridge_server
from commands.console import RedactedStream, UserError
from config import Settings, SettingsError
from config.secret import SECRET_FILES, SECRET_VARIABLES, SECRETS, public_url, secrets_in, variable_of
from config.settings import BARISTA
from export.triton_config import complete_thinker_talker, read_config, write_config
from launch.triton_install import TritonInstall
from launch.triton_server import TritonServer
from tests.conftest import ROOT, free_port, sca, serve_environment, wait_until_answered

PLANTED = "PLANTED"  # part of every planted secret
SECRET = {
    "SCA_BRIDGE_API_KEYS": "PLANTED-key-0123456789, PLANTED-key-9876543210",
    "SCA_BRIDGE_ICE_SERVERS": "stun:stun.example:3478, turn:me:PLANTED-turn@turn.example:3478",
    "SCA_BRIDGE_TRACES_URL": "http://me:PLANTED-pass@127.0.0.1:9/PLANTED-path/v1/traces?token=PLANTED-query",
    "HF_TOKEN": "hf_PLANTED0123456789",
    "OTEL_EXPORTER_OTLP_HEADERS": "authorization=PLANTED-header",
    "https_proxy": "http://me:PLANTED-proxy@127.0.0.1:9",
    "no_proxy": "127.0.0.1,localhost",
}


def assert_hidden(*texts: str) -> None:
    for text in texts:
        assert PLANTED not in text


def planted_settings() -> Settings:
    return Settings.load(environ={name: value for name, value in SECRET.items() if name.startswith("SCA_")})


@pytest.mark.parametrize("command", [("doctor",), ("talk", "none.wav", "out.wav"), ("serve",), ("bridge",)])
def test_no_command_shows_a_secret(command, tmp_path):
    environment = {"SCA_QWEN_MODEL_ID": str(tmp_path / "none"), **SECRET}
    build = ["--build", str(tmp_path / "build")] if command[0] in ("doctor", "serve") else []
    if command[0] == "bridge":
        environment["SCA_BRIDGE_TLS_CERTIFICATE"] = environment["SCA_BRIDGE_TLS_KEY"] = "PLANTED-not-a-file"
        environment |= {"SCA_BRIDGE_TLS_CERTIFICATE": "/no/such.pem", "SCA_BRIDGE_PORT": str(free_port())}
    run = sca(*command, *build, **environment)
    assert run.returncode == 1
    assert_hidden(run.stdout, run.stderr)


def test_doctor_reports_that_a_secret_is_set():
    run = sca("doctor", **SECRET, SCA_QWEN_DEVICE_MAP="cpu", SCA_BRIDGE_LOG_LEVEL="info")
    assert "SCA_BRIDGE_API_KEYS=(not shown)" in run.stderr
    assert "SCA_BRIDGE_LOG_LEVEL=info" in run.stderr


@pytest.mark.parametrize("name", sorted(SECRETS | SECRET_FILES))
def test_error_does_not_quote_a_bad_secret(name: str, tmp_path: Path):
    section, _, key = name.partition(".")
    sources = [
        (None, {variable_of(name): "PLANTED:"}),
        ("\n".join((f"[{section}]", f'{key} = ["PLANTED"]')), {}),
        (f'{section} = "PLANTED"', {}),
    ]
    for toml, environ in sources:
        file = None
        if toml:
            file = tmp_path / "my.toml"
            file.write_text(toml)
        with pytest.raises((SettingsError, UserError)) as refused:
            bridge_server(Settings.load(file, environ=environ))
        assert_hidden(str(refused.value))


def test_secret_settings_are_in_no_representation_of_the_settings():
    settings = planted_settings()
    assert_hidden(repr(settings), settings.to_json())
    for name in SECRETS | SECRET_FILES:
        section, _, key = name.partition(".")
        fields = {field.name: field for field in dataclasses.fields(getattr(settings, section))}
        assert not fields[key].repr, name
        assert key not in json.loads(settings.to_json()).get(section, {}), name


def test_settings_of_the_model_processes_are_complete_except_for_the_bridge():
    settings = Settings.load(environ={"SCA_BRIDGE_TLS_KEY": "a", "SCA_BRIDGE_TLS_CERTIFICATE": "b"})
    received = Settings.from_json(settings.to_json())
    assert received == settings.with_values(bridge={"tls_key": "", "tls_certificate": ""})


def test_triton_gets_secrets_neither_on_its_command_line_nor_in_its_settings(tmp_path: Path, monkeypatch):
    for name, value in SECRET.items():
        monkeypatch.setenv(name, value)
    server = TritonServer(tmp_path / "repository", tmp_path / "triton", planted_settings(), tmp_path / "log")
    assert_hidden(*server._command)
    environment = TritonInstall.find().environment()
    assert not set(environment) & set(SECRET_VARIABLES)


def test_redacted_stream_hides_secrets_in_tracebacks_and_logs():
    code = (
        "import logging, os, sys\n"
        "from commands.console import hide_secrets\n"
        "hide_secrets()\n"
        "print(os.environ['SCA_BRIDGE_API_KEYS'], os.environ['HF_TOKEN'], os.environ['https_proxy'])\n"
        "logging.warning('to %s', os.environ['SCA_BRIDGE_TRACES_URL'])\n"
        "raise ValueError(os.environ['SCA_BRIDGE_ICE_SERVERS'], os.environ['OTEL_EXPORTER_OTLP_HEADERS'])\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **SECRET}, capture_output=True, text=True, check=False
    )
    assert "ValueError" in run.stderr
    assert run.stdout
    assert_hidden(run.stdout, run.stderr)


def test_redacted_stream_is_the_stream_in_everything_else(monkeypatch):
    monkeypatch.setattr(RedactedStream, "secrets", {"PLANTED", "PLANTED-key"})
    stream = RedactedStream(inner := io.StringIO())
    assert stream.write("a PLANTED-key b") == len("a PLANTED-key b")
    stream.writelines(["PLANTED\n"])
    assert inner.getvalue() == "a (not shown) b(not shown)\n"
    assert not stream.isatty()


def test_paths_and_short_values_are_no_secrets():
    assert (
        secrets_in({"HF_TOKEN_PATH": "/home/me/token", "SCA_BRIDGE_TLS_KEY": "/tls/key.pem", "MY_TOKEN": "x"}) == set()
    )
    assert secrets_in({"HF_ENDPOINT": "https://hub.example", "HOME": "/home/me"}) == set()
    assert "PLANTED" in secrets_in({"HF_ENDPOINT": "https://PLANTED@hub.example"})


def test_public_url_has_neither_password_nor_query():
    assert public_url("wss://me:PLANTED@host:1/ws?key=PLANTED#PLANTED") == "wss://host:1/ws"
    assert_hidden(public_url("PLANTED"))


def test_running_bridge_shows_no_secret(tmp_path: Path):
    """The bridge's log at its most detailed, its metrics and its pages, while collector and Triton are unreachable."""
    environment = serve_environment() | SECRET | {"SCA_BRIDGE_LOG_LEVEL": "debug"}
    log, port = tmp_path / "log", environment["SCA_BRIDGE_PORT"]
    environment["SCA_BRIDGE_RECORD_FOLDER"] = str(tmp_path / "recordings")
    command = [sys.executable, "-m", "commands", "bridge"]
    with log.open("w") as output, subprocess.Popen(command, env=environment, stdout=output, stderr=output) as process:
        try:
            wait_until_answered(f"http://127.0.0.1:{port}/healthz", process, log)
            for path in ("/", "/metrics", "/healthz", "/openapi.json", "/docs", "/v1/models"):
                request = urllib.request.Request(f"http://127.0.0.1:{port}{path}")
                request.add_header("Authorization", "Bearer PLANTED-unknown-0123456789")
                try:
                    with urllib.request.urlopen(request) as response:
                        assert_hidden(response.read().decode())
                except urllib.error.HTTPError as error:
                    assert_hidden(error.read().decode())
            command_line = Path(f"/proc/{process.pid}/cmdline").read_bytes().decode()
        finally:
            process.terminate()
    assert_hidden(log.read_text(), command_line)


def test_model_config_contains_no_secret(tmp_path: Path):
    config = read_config(ROOT / "model_repository" / "thinker_talker")
    complete_thinker_talker(config, str(BARISTA), planted_settings())
    write_config(tmp_path, config)
    text = (tmp_path / "config.pbtxt").read_text()
    assert "settings" in text
    assert_hidden(text)
