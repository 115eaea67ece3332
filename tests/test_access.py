"""Access of clients: keys, origins, TLS, and the limit of one client."""

from __future__ import annotations

import json
import ssl
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
import soundfile
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from config import Settings, SettingsError
from tests.bridges import KEYS, RunningBridge, bearer, bridge
from tests.conftest import Served, sca, wait_until_answered
from tests.sockets import event, wait_until_empty


@pytest.mark.parametrize("headers", [{}, bearer("wrong-key-0123456789"), bearer(KEYS[0] + "x"), bearer("é" * 20)])
@pytest.mark.parametrize("path", ["/ws/pcm16", "/v1/realtime"])
def test_conversation_requires_a_key(locked: RunningBridge, path, headers):
    headers = {name: value.encode().decode("latin-1") for name, value in headers.items()}
    with pytest.raises(InvalidStatus) as refused:
        connect(f"ws://127.0.0.1:{locked.port}{path}", additional_headers=headers)
    assert refused.value.response.status_code == 401
    assert json.loads(refused.value.response.body)["error"]["code"] == "invalid_api_key"


def test_key_is_read_from_a_header_or_a_subprotocol(locked: RunningBridge, pcm):
    with (
        connect(locked.websocket, additional_headers=bearer(KEYS[0])) as first,
        connect(locked.websocket, subprotocols=["pcm16", f"openai-insecure-api-key.{KEYS[1]}"]) as second,
    ):
        assert second.subprotocol == "pcm16", "a browser insists on one that it named; the key is not told back"
        for client in (first, second):
            client.send(pcm[:5120].tobytes())
            event(client, "text")


def test_talk_sends_its_key(locked: RunningBridge, tmp_path: Path, pcm):
    user, assistant = tmp_path / "user.wav", tmp_path / "assistant.wav"
    soundfile.write(user, pcm[:10240], 16000)
    assert "401" in sca("talk", user, assistant, "--url", locked.websocket).stderr
    found = sca("talk", user, assistant, "--url", locked.websocket, "--key", KEYS[0])
    assert found.returncode == 0, found.stderr
    assert len(soundfile.read(assistant)[0]) >= 2 * 7680


def test_conversations_of_one_client_are_bounded(locked: RunningBridge, pcm):
    wait_until_empty(locked)
    with connect(locked.websocket, additional_headers=bearer(KEYS[0])) as first:
        first.send(pcm[:5120].tobytes())
        event(first, "text")
        with pytest.raises(InvalidStatus) as refused:
            connect(locked.websocket, additional_headers=bearer(KEYS[0]))
        assert refused.value.response.status_code == 429
        assert refused.value.response.headers["Retry-After"] == "5"
        with connect(locked.websocket, additional_headers=bearer(KEYS[1])) as other:
            other.send(pcm[:5120].tobytes())
            event(other, "text")


def test_bridge_that_others_can_reach_requires_a_key_unless_switched_off(tmp_path: Path, served: Served):
    with bridge(served, tmp_path / "log", host="0.0.0.0") as running:
        assert running.process.wait(30) == 1
        assert "expected keys in bridge.api_keys or bridge.api_keys_file" in (tmp_path / "log").read_text()
    with bridge(served, tmp_path / "log", host="0.0.0.0", require_api_key="never") as running:
        wait_until_answered(f"{running.http}/readyz", running.process, running.log)


@pytest.mark.parametrize("host", ["::1", "127.0.0.1"])
def test_url_of_a_bridge_has_its_host(host: str):
    plain = Settings.load(environ={"SCA_BRIDGE_HOST": host}).bridge
    assert urllib.parse.urlsplit(plain.url).hostname == host
    locked = {"SCA_BRIDGE_HOST": host, "SCA_BRIDGE_TLS_CERTIFICATE": "a", "SCA_BRIDGE_TLS_KEY": "b"}
    assert Settings.load(environ=locked).bridge.url == plain.url.replace("ws://", "wss://")


@pytest.mark.parametrize("keys", ["quick", "with a blank 0123456789", "kéy-0123456789-0123456789"])
def test_weak_key_is_refused_and_not_shown(keys):
    settings = Settings.load(environ={"SCA_BRIDGE_API_KEYS": keys})
    with pytest.raises(SettingsError) as refused:
        settings.bridge.read_keys()
    assert keys not in str(refused.value)


def test_keys_are_in_no_representation_of_the_settings():
    settings = Settings.load(environ={"SCA_BRIDGE_API_KEYS": KEYS[0]})
    assert KEYS[0] not in settings.to_json()
    assert KEYS[0] not in repr(settings)


def test_tls_requires_two_settings(tmp_path: Path, served: Served, pcm):
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    trusted = ssl.create_default_context(cafile=str(certificate))
    with bridge(served, tmp_path / "log", tls_certificate=str(certificate), tls_key=str(key)) as running:
        deadline = time.monotonic() + 30
        while True:
            try:
                client = connect(f"wss://localhost:{running.port}/ws/pcm16", ssl=trusted)
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.2)
        with client:
            client.send(pcm[:5120].tobytes())
            event(client, "text")


def test_page_of_an_allowed_origin_may_send_its_librarys_headers(tmp_path: Path, served: Served):
    """As @openai/agents-realtime does before it calls; a page that is not allowed may not."""
    with bridge(served, tmp_path / "log", allowed_origins="https://shop.example") as running:
        wait_until_answered(f"{running.http}/healthz", running.process, running.log)
        for origin, status in (("https://shop.example", 200), ("https://other.example", 400)):
            headers = {
                "Origin": origin,
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "authorization,content-type,x-openai-agents-sdk",
            }
            request = urllib.request.Request(f"{running.http}/v1/realtime/calls", headers=headers, method="OPTIONS")
            try:
                with urllib.request.urlopen(request) as answer:
                    found, allowed = answer.status, answer.headers["Access-Control-Allow-Headers"]
            except urllib.error.HTTPError as refused:
                found, allowed = refused.code, ""
            assert found == status
            assert ("x-openai-agents-sdk" in allowed) == (status == 200)


@pytest.mark.parametrize("query", ["call_id=rtc_1", "intent=transcription"])
def test_sideband_and_transcription_sessions_are_not_served(served: Served, query: str):
    with pytest.raises(InvalidStatus) as refused:
        connect(f"{served.websocket.removesuffix('/ws/pcm16')}/v1/realtime?{query}")
    assert refused.value.response.status_code == 404
    assert json.loads(refused.value.response.body)["error"]["code"] == "not_served"
