"""A checkpoint of the hub is downloaded before anything starts, and refused if the disk is too small."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from engine.errors import CheckpointError
from export import fetch

NAME = "Qwen/Qwen3-Omni-30B-A3B-Instruct"


class Hub:
    """Stand-in for the hub's API: the files of a checkpoint and their sizes in bytes."""

    def model_info(self, name: str, files_metadata: bool) -> SimpleNamespace:
        assert (name, files_metadata) == (NAME, True)
        files = {"config.json": 10_000, "model-00001.safetensors": 70 * 10**9, "README.md": 999 * 10**9}
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=n, size=s) for n, s in files.items()])


@pytest.fixture
def downloads(monkeypatch, tmp_path) -> list[str]:
    requested: list[str] = []

    def snapshot_download(name: str, allow_patterns: list[str]) -> str:
        requested.append(name)
        assert "*.safetensors" in allow_patterns
        return str(tmp_path)

    monkeypatch.setattr(fetch, "snapshot_download", snapshot_download)
    monkeypatch.setattr(fetch, "try_to_load_from_cache", lambda *_: None)
    return requested


def has_free(monkeypatch, gigabytes: int) -> None:
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda _: SimpleNamespace(free=gigabytes * 10**9))


def test_download_reports_its_size_and_folder(downloads, monkeypatch, tmp_path):
    has_free(monkeypatch, 100)
    reports: list[str] = []
    assert fetch.fetch_checkpoint(NAME, reports.append, Hub()) == tmp_path
    assert reports[0].startswith(f"{NAME}: downloading 70 GB into ")
    assert downloads == [NAME]


def test_small_disk_is_refused_before_the_download(downloads, monkeypatch):
    has_free(monkeypatch, 60)
    with pytest.raises(CheckpointError, match="needs 70 GB more, but .* has 60 GB free: make room, or set HF_HOME"):
        fetch.fetch_checkpoint(NAME, print, Hub())
    assert not downloads


def test_cached_files_need_no_space(downloads, monkeypatch):
    has_free(monkeypatch, 1)
    monkeypatch.setattr(fetch, "try_to_load_from_cache", lambda _, file: f"/cache/{file}")
    reports: list[str] = []
    fetch.fetch_checkpoint(NAME, reports.append, Hub())
    assert (reports, downloads) == ([], [NAME])


def test_error_reports_an_unreachable_hub(downloads, monkeypatch):
    def fail(*_, **__):
        raise OSError("no route")

    monkeypatch.setattr(fetch, "snapshot_download", fail)
    with pytest.raises(CheckpointError, match="cannot be downloaded: no route"):
        fetch.fetch_checkpoint(NAME, print, SimpleNamespace(model_info=fail))
