"""Keys, short-lived keys, limits of one client, TLS, and the bridge's end: bridges of their own before one Triton."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import signal
import ssl
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import openai
import pytest
import soundfile
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from config import Settings, SettingsError
from contract.errors import ErrorCode
from frontend import ephemeral_keys
from frontend.access import Caller, RefusedError
from frontend.bridge import Bridge
from tests.conftest import ROOT, Served, free_port, sca, serve_environment, wait_until_answered
from tests.test_bridge import event, wait_until_empty

KEYS = ("first-key-0123456789", "second-key-0123456789")
DRAIN_S = 2


@dataclass(frozen=True)
class RunningBridge:
    """A `./sca bridge`."""

    port: int
    process: subprocess.Popen[str]
    log: Path

    @property
    def http(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def websocket(self) -> str:
        return f"ws://127.0.0.1:{self.port}/ws/pcm16"


@contextlib.contextmanager
def bridge(
    served: Served, log: Path, environment: Mapping[str, str] | None = None, **settings: str
) -> Iterator[RunningBridge]:
    """A bridge before a server, or before what `environment` names; `settings` are the bridge's own."""
    port = free_port()
    environment = serve_environment() | {
        "SCA_TRITON_GRPC_PORT": str(served.settings.triton.grpc_port),
        "SCA_BRIDGE_PORT": str(port),
        **{f"SCA_BRIDGE_{name.upper()}": value for name, value in settings.items()},
        **(environment or {}),
    }
    with log.open("w") as output:
        process = subprocess.Popen(
            [ROOT / "sca", "bridge"], env=environment, stdout=output, stderr=subprocess.STDOUT, text=True
        )
    try:
        yield RunningBridge(port, process, log)
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def locked(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBridge]:
    """A bridge that others can reach, with two keys."""
    folder = tmp_path_factory.mktemp("locked")
    keys = folder / "keys"
    keys.write_text("# of the shop\n" + "\n".join(KEYS) + "\n")
    with bridge(
        served, folder / "log", host="0.0.0.0", api_keys_file=str(keys), conversations_per_client="1", log_level="info"
    ) as running:
        wait_until_answered(f"{running.http}/readyz", running.process, running.log)
        yield running
        shown = running.log.read_text()
        assert not [key for key in KEYS if key in shown], "no key is in the log"


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.parametrize("headers", [{}, bearer("wrong-key-0123456789"), bearer(KEYS[0] + "x"), bearer("é" * 20)])
@pytest.mark.parametrize("path", ["/ws/pcm16", "/v1/realtime"])
def test_without_a_key_there_is_no_conversation(locked: RunningBridge, path, headers):
    headers = {name: value.encode().decode("latin-1") for name, value in headers.items()}
    with pytest.raises(InvalidStatus) as refused:
        connect(f"ws://127.0.0.1:{locked.port}{path}", additional_headers=headers)
    assert refused.value.response.status_code == 401
    assert json.loads(refused.value.response.body)["error"]["code"] == "invalid_api_key"


def test_either_key_opens_it_as_a_header_or_as_a_subprotocol(locked: RunningBridge, pcm):
    with (
        connect(locked.websocket, additional_headers=bearer(KEYS[0])) as first,
        connect(locked.websocket, subprotocols=["pcm16", f"openai-insecure-api-key.{KEYS[1]}"]) as second,
    ):
        assert second.subprotocol == "pcm16", "a browser insists on one that it named; the key is not told back"
        for client in (first, second):
            client.send(pcm[:5120].tobytes())
            event(client, "text")


def test_talk_shows_its_key(locked: RunningBridge, tmp_path: Path, pcm):
    said, heard = tmp_path / "said.wav", tmp_path / "heard.wav"
    soundfile.write(said, pcm[:10240], 16000)
    assert "401" in sca("talk", said, heard, "--url", locked.websocket).stderr
    found = sca("talk", said, heard, "--url", locked.websocket, "--key", KEYS[0])
    assert found.returncode == 0, found.stderr
    assert len(soundfile.read(heard)[0]) >= 2 * 7680


def test_one_client_has_so_many_conversations(locked: RunningBridge, pcm):
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


def test_a_short_lived_key_opens_the_session_that_it_was_made_for(locked: RunningBridge):
    client = openai.OpenAI(base_url=f"{locked.http}/v1", api_key=KEYS[0])
    secret = client.realtime.client_secrets.create(
        session={"type": "realtime", "instructions": "Be brief."},
        expires_after={"anchor": "created_at", "seconds": 60},
    )
    assert secret.value.startswith("ek_")
    assert 50 <= secret.expires_at - time.time() <= 61
    assert secret.session.instructions == "Be brief."
    with openai.OpenAI(base_url=f"{locked.http}/v1", api_key=secret.value).realtime.connect(model="any") as connection:
        created = connection.recv()
        assert created.session.instructions == "Be brief."
    with pytest.raises(openai.AuthenticationError, match="only its holder makes others"):
        openai.OpenAI(base_url=f"{locked.http}/v1", api_key=secret.value).realtime.client_secrets.create()


@pytest.mark.parametrize(
    ("body", "message", "param"),
    [
        (b"{", "not JSON", None),
        (b"[]", "expected an object", None),
        (b'{"expires_after": {"seconds": 5}}', "expected 10 to 7200 seconds", "expires_after"),
        (b'{"expires_after": {"anchor": "x"}}', "expected created_at", "expires_after.anchor"),
        (b'{"session": {"instructions": 7}}', "instructions", "session.instructions"),
        (b'{"session": []}', "expected an object", "session"),
        (b" " * 300_000, "expected at most 262144 bytes", None),
    ],
)
def test_a_bad_request_for_one_is_told_what_was_expected(locked: RunningBridge, body, message, param):
    request = urllib.request.Request(
        f"{locked.http}/v1/realtime/client_secrets", data=body, headers=bearer(KEYS[0]), method="POST"
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request)
    assert refused.value.code in (400, 413)
    error = json.load(refused.value)["error"]
    assert message in error["message"]
    assert error["param"] == param


def test_a_short_lived_key_that_has_expired_opens_no_other_session(served: Served):
    """Also where no key is needed: who made it asked for a session of its own."""
    with pytest.raises(InvalidStatus) as refused:
        connect(
            f"{served.websocket.removesuffix('/ws/pcm16')}/v1/realtime", additional_headers=bearer("ek_of-yesterday")
        )
    assert refused.value.response.status_code == 401


def test_beyond_this_machine_a_key_is_needed_unless_switched_off_by_name(tmp_path: Path, served: Served):
    with bridge(served, tmp_path / "log", host="0.0.0.0") as running:
        assert running.process.wait(30) == 1
        assert "expected keys in bridge.api_keys or bridge.api_keys_file" in (tmp_path / "log").read_text()
    with bridge(served, tmp_path / "log", host="0.0.0.0", require_api_key="never") as running:
        wait_until_answered(f"{running.http}/readyz", running.process, running.log)


def test_one_caller_does_not_use_up_all_short_lived_keys(monkeypatch):
    monkeypatch.setattr(ephemeral_keys, "MAX_OWN_KEYS", 3)
    keys = ephemeral_keys.EphemeralKeys()
    for _ in range(3):
        keys.make(Caller("one"), 60, {})
    with pytest.raises(RefusedError) as refused:
        keys.make(Caller("one"), 60, {})
    assert refused.value.code is ErrorCode.TOO_MANY_SECRETS
    assert keys.make(Caller("another"), 60, {}).value


@pytest.mark.parametrize("host", ["::1", "127.0.0.1"])
def test_the_address_of_a_bridge_is_one(host: str):
    plain = Settings.load(environ={"SCA_BRIDGE_HOST": host}).bridge
    assert urllib.parse.urlsplit(plain.url).hostname == host
    locked = {"SCA_BRIDGE_HOST": host, "SCA_BRIDGE_TLS_CERTIFICATE": "a", "SCA_BRIDGE_TLS_KEY": "b"}
    assert Settings.load(environ=locked).bridge.url == plain.url.replace("ws://", "wss://")


@pytest.mark.parametrize("keys", ["quick", "with a blank 0123456789", "kéy-0123456789-0123456789"])
def test_a_key_that_could_be_guessed_is_refused_and_not_shown(keys):
    settings = Settings.load(environ={"SCA_BRIDGE_API_KEYS": keys})
    with pytest.raises(SettingsError) as refused:
        settings.bridge.read_keys()
    assert keys not in str(refused.value)


def test_keys_do_not_travel():
    settings = Settings.load(environ={"SCA_BRIDGE_API_KEYS": KEYS[0]})
    assert KEYS[0] not in settings.to_json()
    assert KEYS[0] not in repr(settings)


def test_tls_by_two_settings(tmp_path: Path, served: Served, pcm):
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


def test_at_its_end_conversations_are_told_and_given_time(tmp_path: Path, served: Served, pcm):
    with bridge(served, tmp_path / "log", drain_s=str(DRAIN_S)) as running:
        wait_until_answered(f"{running.http}/readyz", running.process, running.log)
        with connect(running.websocket) as client:
            client.send(pcm[:5120].tobytes())
            event(client, "text")
            running.process.send_signal(signal.SIGTERM)
            assert event(client, "draining") == {"type": "draining", "seconds": DRAIN_S}
            with pytest.raises(urllib.error.HTTPError, match="503"):
                urllib.request.urlopen(f"{running.http}/readyz")
            with pytest.raises(InvalidStatus) as refused:
                connect(running.websocket)
            assert refused.value.response.status_code == 503
            client.send(pcm[:5120].tobytes())
            event(client, "text")
            assert event(client, "error")["code"] == "draining"
            with pytest.raises(ConnectionClosed) as closed:
                client.recv(timeout=5)
            assert closed.value.rcvd.code == 1001
        assert running.process.wait(10) == 0
        assert "ASGI" not in running.log.read_text(), "a refusal is no error of the bridge"


def test_the_end_waits_for_closes_that_are_under_way(monkeypatch):
    """A conversation that was told still waits for its last tick: the server must not close its WebSocket before it."""
    monkeypatch.setenv("SCA_BRIDGE_DRAIN_S", "0")
    the_bridge = Bridge(Settings.load())

    class Slow:
        """Its WebSocket is closed a while after it was told to end."""

        is_closed = False

        async def notify(self, _: object) -> None: ...

        async def end(self, *_: object) -> None:
            self.closing = asyncio.create_task(self.close())

        async def close(self) -> None:
            await asyncio.sleep(0.3)
            self.is_closed = True
            the_bridge.open.discard(self)

    async def drain() -> None:
        slow = Slow()
        the_bridge.open.add(slow)
        await the_bridge.drain()
        assert slow.is_closed

    asyncio.run(drain())


def test_with_nobody_there_it_ends_at_once(tmp_path: Path, served: Served):
    with bridge(served, tmp_path / "log", drain_s="600") as running:
        wait_until_answered(f"{running.http}/readyz", running.process, running.log)
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(60) == 0


def test_text_that_is_no_utf8_ends_its_websocket_and_is_no_error_of_the_bridge(locked: RunningBridge):
    with connect(locked.websocket, additional_headers=bearer(KEYS[1])) as client:
        client.send(b"\xff\xfe", text=True)
        with pytest.raises(ConnectionClosed) as closed:
            list(client)
    assert closed.value.rcvd
    assert closed.value.rcvd.code == 1007
    assert "Traceback" not in locked.log.read_text()


def test_metrics_and_log_tell_of_a_conversation_but_not_what_was_said(locked: RunningBridge, pcm):
    wait_until_empty(locked)
    with connect(locked.websocket, additional_headers=bearer(KEYS[1])) as client:
        opened = event(client, "conversation.opened")
        client.send(json.dumps({"type": "options", "system_prompt": "a secret"}))
        client.send(pcm[:5120].tobytes())
        event(client, "text")
        assert metrics(locked)["sca_bridge_conversations"] == 1
        client.send(json.dumps({"type": "end"}))
        with contextlib.suppress(ConnectionClosed):
            while True:
                client.recv(timeout=20)
    wait_until_empty(locked)
    found = metrics(locked)
    assert found["sca_bridge_conversations"] == 0
    assert found['sca_bridge_ended_total{protocol="pcm16",why="end"}'] >= 1
    assert found['sca_bridge_refused_total{code="invalid_api_key"}'] >= 1
    assert found["sca_bridge_tick_seconds_count"] >= 2
    deadline = time.monotonic() + 20
    while not (lines := lines_about(locked, opened["id"])) or lines[-1]["event"] != "ended":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert [line["event"] for line in lines] == ["opened", "ended"]
    assert lines[0]["caller"].startswith("key ")
    assert (lines[-1]["why"], lines[-1]["ticks"]) == ("end", 2)
    assert "a secret" not in locked.log.read_text()


def test_metrics_tell_how_far_a_client_of_realtime_is_ahead_of_the_engine(served_turns: Served):
    """Three seconds of sound at once: what waits behind the first tick is 2.7 s, behind the second 2.4 s."""
    name = "sca_bridge_behind_seconds"
    before = metrics(served_turns)
    with connect(served_turns.websocket.replace("/ws/pcm16", "/v1/realtime")) as client:
        event(client, "session.created")
        audio = base64.b64encode(bytes(3 * 24_000 * 2)).decode()
        client.send(json.dumps({"type": "input_audio_buffer.append", "audio": audio}))
        deadline = time.monotonic() + 20
        while (found := metrics(served_turns))[f"{name}_count"] < before[f"{name}_count"] + 9:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    waited_s = found[f"{name}_sum"] - before[f"{name}_sum"]
    assert 10 < waited_s < 14, "the sum of 2.7, 2.4 and so on"


def test_metrics_need_the_key_too(locked: RunningBridge):
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{locked.http}/metrics")


def metrics(running: RunningBridge | Served) -> dict[str, float]:
    request = urllib.request.Request(f"{running.http}/metrics", headers=bearer(KEYS[0]))
    with urllib.request.urlopen(request) as response:
        lines = [line.rsplit(" ", 1) for line in response.read().decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in lines}


def lines_about(running: RunningBridge, conversation: str) -> list[dict]:
    lines = [json.loads(line) for line in running.log.read_text().splitlines() if line.startswith("{")]
    return [line for line in lines if line.get("conversation") == conversation]


def test_a_page_from_elsewhere_may_send_headers_of_its_library(tmp_path: Path, served: Served):
    """As @openai/agents-realtime does before it calls; a page that is not allowed may not."""
    with bridge(served, tmp_path / "log", allowed_origins="https://shop.example") as running:
        wait_until_answered(f"{running.http}/healthz", running.process, running.log)
        for origin, status in (("https://shop.example", 200), ("https://other.example", 400)):
            headers = {
                "Origin": origin,
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "authorization,content-type,x-openai-agents-sdk",
            }
            asked = urllib.request.Request(f"{running.http}/v1/realtime/calls", headers=headers, method="OPTIONS")
            try:
                with urllib.request.urlopen(asked) as answer:
                    found, allowed = answer.status, answer.headers["Access-Control-Allow-Headers"]
            except urllib.error.HTTPError as refused:
                found, allowed = refused.code, ""
            assert found == status
            assert ("x-openai-agents-sdk" in allowed) == (status == 200)


@pytest.mark.parametrize("query", ["call_id=rtc_1", "intent=transcription"])
def test_a_conversation_that_is_not_ones_own_is_not_served(served: Served, query: str):
    with pytest.raises(InvalidStatus) as refused:
        connect(f"{served.websocket.removesuffix('/ws/pcm16')}/v1/realtime?{query}")
    assert refused.value.response.status_code == 404
    assert json.loads(refused.value.response.body)["error"]["code"] == "not_served"
