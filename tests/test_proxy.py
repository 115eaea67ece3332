"""No program uses a proxy for this machine or the servers next to it; here the proxy is a closed port."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import soundfile
import tritonclient.grpc as grpc
from websockets.sync.server import ServerConnection, serve

from client.python_grpc import NO_PROXY
from client.python_websocket import is_near
from config.proxy import bypass_proxies
from tests.conftest import ROOT, sca

NAMES = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy", "ws_proxy", "wss_proxy", "socks_proxy")
CLOSED = {name: "http://127.0.0.1:9" for each in NAMES for name in (each, each.upper())}
CLOSED |= {"no_proxy": "", "NO_PROXY": ""}


class Ok(BaseHTTPRequestHandler):
    """Answers every request with an empty response."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()


@pytest.fixture
def port() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Ok) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def test_talk_connects_to_this_machine_without_a_proxy(tmp_path):
    def converse(socket: ServerConnection) -> None:
        socket.send(json.dumps({"type": "conversation.opened", "dialect": "sca", "tick_ms": 320}))
        for message in socket:
            if isinstance(message, str):
                break
        socket.send(bytes(15360))

    soundfile.write(tmp_path / "in.wav", np.zeros(5120), 16000)
    with serve(converse, "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"ws://127.0.0.1:{server.socket.getsockname()[1]}/ws/pcm16"
        run = sca("talk", tmp_path / "in.wav", tmp_path / "out.wav", "--url", url, **CLOSED)
        server.shutdown()
    assert run.returncode == 0, run.stderr


def health_check(dockerfile: str, port: int) -> list[str]:
    text = (ROOT / dockerfile).read_text()
    command: list[str] = json.loads(re.search(r"HEALTHCHECK.*\\\n\s+CMD (\[.*\])", text)[1])
    return [part.replace("localhost:8000", f"127.0.0.1:{port}").replace("localhost:", "127.0.0.1:") for part in command]


@pytest.mark.parametrize("dockerfile", ["Dockerfile", "deploy/bridge.Dockerfile"])
def test_health_check_of_an_image_uses_no_proxy(dockerfile: str, port: int):
    environment = {**os.environ, **CLOSED, "SCA_TRITON_HTTP_PORT": str(port)}
    subprocess.run(health_check(dockerfile, port), env=environment, check=True, timeout=30)


def test_grpc_clients_use_no_proxy():
    assert ("grpc.enable_http_proxy", 0) in NO_PROXY
    with grpc.InferenceServerClient("127.0.0.1:9", channel_args=NO_PROXY) as client:
        assert client is not None
    assert '"grpc.enable_http_proxy": 0' in (ROOT / "client" / "node" / "converse.js").read_text()
    for file in ("client/http_curl.sh", "Dockerfile", "deploy/helm/templates/replica.yaml"):
        text = (ROOT / file).read_text()
        assert len(re.findall(r"curl -", text)) == len(re.findall(r"curl --noproxy '\*'", text)), file


def test_commands_bypass_the_proxy_for_this_machine(port: int):
    code = (
        "import os, sys, urllib.request; from config.proxy import bypass_proxies; bypass_proxies(os.environ)\n"
        "assert urllib.request.urlopen(sys.argv[1]).status == 200"
    )
    command = [sys.executable, "-c", code, f"http://127.0.0.1:{port}/"]
    subprocess.run(command, env={**os.environ, **CLOSED}, cwd=ROOT, check=True, timeout=30)


def test_exceptions_of_the_user_are_kept():
    environ = {"NO_PROXY": "corp.example"}
    bypass_proxies(environ, ["triton"])
    assert environ["no_proxy"] == environ["NO_PROXY"] == "corp.example,localhost,127.0.0.1,::1,triton"
    environ = {"no_proxy": "*"}
    bypass_proxies(environ)
    assert environ["NO_PROXY"] == "*"


@pytest.mark.parametrize(
    ("url", "near"),
    [
        ("ws://localhost:8000/", True),
        ("ws://127.0.0.2:8000/", True),
        ("ws://[::1]:8000/", True),
        ("ws://bridge:8000/", True),
        ("ws://192.168.1.7:8000/", True),
        ("wss://voice.example/", False),
        ("wss://9.9.9.9/", False),
    ],
)
def test_proxy_is_used_only_for_hosts_outside_of_the_network(url: str, near: bool):
    assert is_near(url) == near
