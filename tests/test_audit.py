"""The audit of dependencies, against a service that speaks osv.dev's API and knows one vulnerability."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from commands.audit import LOCK, NOT_RUN, pinned
from tests.test_commands import sca

VULNERABLE = ("aiohttp", "3.9.1", "PYSEC-2024-26")


class Service(BaseHTTPRequestHandler):
    """POST /v1/querybatch, as osv.dev answers it."""

    def do_POST(self) -> None:
        queries = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["queries"]
        asked = [(query["package"]["name"], query["version"]) for query in queries]
        assert all(query["package"]["ecosystem"] == "PyPI" for query in queries)
        known = {"vulns": [{"id": VULNERABLE[2], "modified": "2024-02-06T20:20:18Z"}]}
        body = json.dumps({"results": [known if pin == VULNERABLE[:2] else {} for pin in asked]}).encode()
        self.send_response(200 if self.path == "/v1/querybatch" else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""


@pytest.fixture
def service() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Service)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_a_vulnerable_version_is_named_and_fails_the_check(service: str, tmp_path: Path):
    lock = tmp_path / "lock"
    lock.write_text("aiohttp==3.9.1 ; python_full_version < '3.11'\nnumpy==2.1.0\n")
    run = sca("audit", "--service", service, "--lock", lock)
    assert run.returncode == 1
    assert "aiohttp 3.9.1: PYSEC-2024-26" in run.stdout
    lock.write_text("aiohttp==3.9.2\n")
    assert sca("audit", "--service", service, "--lock", lock).returncode == 0


def test_every_line_of_the_lock_is_asked_about(service: str):
    run = sca("audit", "--service", service)
    assert run.returncode == 0, run.stderr
    lines = [line for line in LOCK.read_text().splitlines() if line.strip() and not line.startswith("#")]
    assert len(pinned(LOCK)) == len(lines)
    assert f"{len(lines)} versions, 0 vulnerabilities" in run.stdout


def test_without_a_network_it_is_not_run(tmp_path: Path):
    run = sca("audit", "--service", "http://127.0.0.1:9")
    assert run.returncode == NOT_RUN
    assert "does not answer" in run.stderr


def test_a_requirement_without_a_version_is_an_error(tmp_path: Path):
    (tmp_path / "lock").write_text("numpy>=2\n")
    with pytest.raises(ValueError, match=r"'numpy>=2', expected one version"):
        pinned(tmp_path / "lock")
