"""The audit of dependencies, against a service with osv.dev's API and one known vulnerability."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from commands.audit import LOCK, NOT_RUN, pinned
from tests.conftest import sca

VULNERABLE = ("aiohttp", "3.9.1", "PYSEC-2024-26")


class Service(BaseHTTPRequestHandler):
    """Handler of POST /v1/querybatch, with the response of osv.dev."""

    def do_POST(self) -> None:
        queries = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["queries"]
        pins = [(query["package"]["name"], query["version"]) for query in queries]
        assert all(query["package"]["ecosystem"] == "PyPI" for query in queries)
        known = {"vulns": [{"id": VULNERABLE[2], "modified": "2024-02-06T20:20:18Z"}]}
        body = json.dumps({"results": [known if pin == VULNERABLE[:2] else {} for pin in pins]}).encode()
        self.send_response(200 if self.path == "/v1/querybatch" else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture
def service() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Service)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_audit_fails_and_prints_a_vulnerable_version(service: str, tmp_path: Path):
    lock = tmp_path / "lock"
    lock.write_text("aiohttp==3.9.1 ; python_full_version < '3.11'\nnumpy==2.1.0\n")
    run = sca("audit", "--service", service, "--lock", lock)
    assert run.returncode == 1
    assert "aiohttp 3.9.1: PYSEC-2024-26" in run.stdout
    lock.write_text("aiohttp==3.9.2\n")
    assert sca("audit", "--service", service, "--lock", lock).returncode == 0


def test_audit_queries_every_line_of_the_lock(service: str):
    run = sca("audit", "--service", service)
    assert run.returncode == 0, run.stderr
    lines = [line for line in LOCK.read_text().splitlines() if line.strip() and not line.startswith("#")]
    assert len(pinned(LOCK)) == len(lines)
    assert f"{len(lines)} versions, 0 vulnerabilities" in run.stdout


def test_audit_is_not_run_without_a_network(tmp_path: Path):
    run = sca("audit", "--service", "http://127.0.0.1:9")
    assert run.returncode == NOT_RUN
    assert "does not answer" in run.stderr


def test_audit_raises_for_a_requirement_without_a_version(tmp_path: Path):
    (tmp_path / "lock").write_text("numpy>=2\n")
    with pytest.raises(ValueError, match=r"lock: expected one version with ==, got 'numpy>=2'"):
        pinned(tmp_path / "lock")
