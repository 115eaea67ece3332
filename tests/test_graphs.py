"""The store of exported graphs: a graph is made once, whatever build folder asks, and follows from content."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from config import Settings
from export.graphs import MAX_KEPT_SHARED, GraphStore
from export.weights import CODE2WAV, PREDICTOR_PARTS, weights_digest


@pytest.fixture
def copy(checkpoint_folder: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint_folder, tmp_path / "checkpoint"))


def change(folder: Path, prefix: str) -> None:
    """Change one weight whose name begins with `prefix`."""
    weights = load_file(folder / "model.safetensors")
    name = min(name for name in weights if name.startswith(prefix))
    weights[name] = weights[name] + 1
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def test_digest_of_a_copied_checkpoint_is_the_same(copy: Path, checkpoint_folder: str):
    for file in copy.iterdir():
        os.utime(file, (1, 1))
    assert weights_digest(str(copy), CODE2WAV) == weights_digest(checkpoint_folder, CODE2WAV)


def test_digest_changes_with_the_weights_of_its_module_only(copy: Path):
    prefixes = ((CODE2WAV,), PREDICTOR_PARTS)
    before = [weights_digest(str(copy), *each) for each in prefixes]
    assert before[0] != before[1]
    change(copy, "thinker.")
    assert [weights_digest(str(copy), *each) for each in prefixes] == before
    change(copy, CODE2WAV)
    assert weights_digest(str(copy), CODE2WAV) != before[0]
    assert weights_digest(str(copy), *PREDICTOR_PARTS) == before[1]
    (copy / "config.json").write_text((copy / "config.json").read_text() + "\n")
    assert weights_digest(str(copy), *PREDICTOR_PARTS) != before[1]


class Maker:
    """A caller of the store that counts the graphs it has made."""

    def __init__(self, store: GraphStore):
        self.store, self.count = store, 0

    def get(self, follows_from: str) -> Path:
        def make(folder: Path) -> str:
            self.count += 1
            (folder / "model.onnx").write_text(follows_from)
            return "equal"

        return self.store.get("stage", "to ONNX", [], {"weights": follows_from}, make)


def test_build_folders_with_a_shared_store_export_a_graph_once(tmp_path: Path):
    settings = Settings.load(environ={"SCA_BUILD_GRAPHS": str(tmp_path / "shared")}).build
    first, second = (Maker(GraphStore.of(settings, tmp_path / build, print)) for build in ("a", "b"))
    assert first.get("x") == second.get("x")
    assert second.get("x").parent == tmp_path / "shared"
    assert (first.count, second.count) == (1, 0)


def test_graph_is_made_once_for_callers_at_the_same_time(tmp_path: Path):
    makers = [Maker(GraphStore(tmp_path, print)) for _ in range(4)]
    threads = [threading.Thread(target=maker.get, args=("x",)) for maker in makers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(maker.count for maker in makers) == 1


def test_own_store_keeps_one_graph_of_a_name_and_a_shared_store_the_latest_used(tmp_path: Path):
    own = Maker(GraphStore.of(Settings.load(environ={}).build, tmp_path, print))
    assert own.get("x") != own.get("y")
    assert own.get("y").parent == tmp_path / "graphs"
    own.get("x")
    assert own.count == 3
    shared = Maker(GraphStore(tmp_path / "shared", print, MAX_KEPT_SHARED))
    for number in range(MAX_KEPT_SHARED):
        os.utime(shared.get(str(number)), (number, number))
    shared.get("0")
    shared.get("one more")
    shared.get("0")
    assert shared.count == MAX_KEPT_SHARED + 1
    shared.get("1")
    assert shared.count == MAX_KEPT_SHARED + 2, "the oldest has been removed"
