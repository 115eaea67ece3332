"""A checkpoint of the hub is downloaded before anything starts; without the hub its copy in the cache is served."""

from __future__ import annotations

import json
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import httpx2
import pytest
from huggingface_hub import HfApi, constants

from engine.errors import CheckpointError
from export import fetch

NAME = "Qwen/Qwen3-Omni-30B-A3B-Instruct"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Stand-in for the hub's API: the files of a checkpoint and their sizes in bytes."""

    def model_info(self, name: str, files_metadata: bool, timeout: float) -> SimpleNamespace:
        assert (name, files_metadata, timeout > 0) == (NAME, True, True)
        files = {"config.json": 10_000, "model-00001.safetensors": 70 * 10**9, "README.md": 999 * 10**9}
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=n, size=s) for n, s in files.items()])


@pytest.fixture
def snapshot(tmp_path, checkpoint_folder) -> Path:
    """Return the folder of a snapshot that contains only the config."""
    folder = tmp_path / "snapshot"
    folder.mkdir()
    shutil.copy(Path(checkpoint_folder) / "config.json", folder)
    return folder


@pytest.fixture
def downloads(monkeypatch, snapshot) -> list[list[str]]:
    requested: list[list[str]] = []

    def snapshot_download(name: str, allow_patterns: list[str]) -> str:
        assert name == NAME
        requested.append(allow_patterns)
        return str(snapshot)

    monkeypatch.setattr(fetch, "snapshot_download", snapshot_download)
    monkeypatch.setattr(fetch, "try_to_load_from_cache", lambda *_: None)
    return requested


def has_free(monkeypatch, gigabytes: int) -> None:
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda _: SimpleNamespace(free=gigabytes * 10**9))


def test_download_reports_its_size_and_folder(downloads, monkeypatch, snapshot):
    has_free(monkeypatch, 100)
    reports: list[str] = []
    assert fetch.fetch_checkpoint(NAME, reports.append, Hub()) == snapshot
    assert reports[0].startswith(f"{NAME}: downloading 70 GB into ")
    assert ["*.safetensors" in patterns for patterns in downloads] == [False, True]


def test_small_disk_is_refused_before_the_download(downloads, monkeypatch):
    has_free(monkeypatch, 60)
    with pytest.raises(CheckpointError, match="needs 70 GB more, but .* has 60 GB free: make room, or set HF_HOME"):
        fetch.fetch_checkpoint(NAME, print, Hub())
    assert len(downloads) == 1


def test_other_model_is_refused_before_the_download(downloads, snapshot):
    (snapshot / "config.json").write_text('{"model_type": "whisper"}')
    with pytest.raises(CheckpointError, match="expected model type 'qwen3_omni_moe', got 'whisper'"):
        fetch.fetch_checkpoint(NAME, print, Hub())
    assert len(downloads) == 1


def test_present_files_need_no_space(downloads, monkeypatch, snapshot):
    has_free(monkeypatch, 1)
    (snapshot / "model-00001.safetensors").touch()
    reports: list[str] = []
    fetch.fetch_checkpoint(NAME, reports.append, Hub())
    assert (reports, len(downloads)) == ([], 2)


@pytest.mark.parametrize("name", ["a/b/c", "./folder", "what is this?"])
def test_error_names_a_source_that_is_neither_folder_nor_name(name):
    with pytest.raises(CheckpointError, match="expected a folder with config.json or a hub name"):
        fetch.fetch_checkpoint(name, print)


@contextmanager
def answering(status: int, body: bytes = b"") -> Iterator[str]:
    """Run a hub that answers every request with one status; yield its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def silent() -> Iterator[str]:
    """Run a hub that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@contextmanager
def refusing() -> Iterator[str]:
    yield "http://127.0.0.1:9"


@contextmanager
def unknown() -> Iterator[str]:
    yield "http://hub.invalid"


@contextmanager
def impossible() -> Iterator[str]:
    yield "http://[::1"


FAILURES = {
    "refused": refusing,
    "unknown host": unknown,
    "timeout": silent,
    "500": lambda: answering(500),
    "503": lambda: answering(503, b"<html>busy</html>"),
    "429": lambda: answering(429),
    "401": lambda: answering(401),
    "404": lambda: answering(404),
    "login page": lambda: answering(200, b"<html>log in</html>"),
    "other json": lambda: answering(200, b"[]"),
    "bad address": impossible,
}


@pytest.fixture
def cache(monkeypatch, tmp_path, checkpoint_folder) -> Path:
    """Cache of the hub with a complete checkpoint; return the folder of the snapshot."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(fetch, "TIMEOUT_S", 0.2)
    repository = tmp_path / "hub" / f"models--{NAME.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    snapshot = repository / "snapshots" / COMMIT
    shutil.copytree(checkpoint_folder, snapshot)
    monkeypatch.setattr(fetch, "try_to_load_from_cache", lambda name, file: str(snapshot / file))
    return snapshot


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
def test_copy_in_the_cache_is_served_when_the_hub_fails(cache, failure):
    reports: list[str] = []
    with failure() as address:
        assert fetch.fetch_checkpoint(NAME, reports.append, HfApi(endpoint=address)) == cache
    assert len(reports) == 1
    assert "starting from the copy in the cache" in reports[0]
    assert "\n" not in reports[0]


@pytest.mark.parametrize("missing", ["model.safetensors", "tokenizer.json", "preprocessor_config.json"])
def test_incomplete_copy_is_refused_with_the_remedy(cache, missing):
    (cache / missing).unlink()
    with pytest.raises(
        CheckpointError, match="cannot be downloaded .*copy in the cache cannot be served .*HF_ENDPOINT"
    ):
        fetch.fetch_checkpoint(NAME, print, HfApi(endpoint="http://127.0.0.1:9"))


def test_shard_that_was_not_downloaded_makes_a_copy_incomplete(cache):
    (cache / "model.safetensors").rename(cache / "model-00001-of-00002.safetensors")
    weight_map = {"thinker.lm_head.weight": "model-00001-of-00002.safetensors", "x": "model-00002-of-00002.safetensors"}
    (cache / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002\.safetensors is missing"):
        fetch.fetch_checkpoint(NAME, print, HfApi(endpoint="http://127.0.0.1:9"))


def test_failure_during_the_download_uses_the_cache(cache, monkeypatch):
    def fail(*_: object, **__: object) -> str:
        raise httpx2.ReadTimeout("the connection was cut")

    monkeypatch.setattr(fetch, "snapshot_download", fail)
    reports: list[str] = []
    assert fetch.fetch_checkpoint(NAME, reports.append, Hub()) == cache
    assert "the connection was cut" in reports[0]


def test_error_reports_an_unreachable_hub_without_a_copy(cache, monkeypatch):
    monkeypatch.setattr(fetch, "try_to_load_from_cache", lambda *_: None)
    with pytest.raises(CheckpointError, match=r"cannot be downloaded \(.*\), and .* has no copy: check the network"):
        fetch.fetch_checkpoint(NAME, print, HfApi(endpoint="http://127.0.0.1:9"))
