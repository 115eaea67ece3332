"""The bridge works without its optional parts: in a copy of the tree the bridge starts and serves /ws/pcm16."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

COPIED = ("client", "config", "contract", "frontend")
TESTS = ("test_pcm16.py", "test_pcm16_wire.py", "test_resumable_socket.py", "test_playout.py", "test_client_clock.py")
ALL_PARTS = ("realtime", "webrtc", "failover", "recording.py", "traces.py", "page.py", "ephemeral_keys.py", "body.py")


def copy_tree(folder: Path, absent: tuple[str, ...]) -> Path:
    """Copy what the small bridge and its tests need, without the absent parts."""
    ignored = shutil.ignore_patterns("__pycache__", "node_modules")
    for name in COPIED:
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    (folder / "tests").mkdir()
    for name in ("__init__.py", "triton_fake.py", *TESTS):
        shutil.copy(ROOT / "tests" / name, folder / "tests" / name)
    for name in absent:
        path = folder / "frontend" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return folder


@pytest.mark.parametrize(
    "absent", [("realtime", "webrtc"), ("failover",), ALL_PARTS], ids=["protocols", "failover", "all"]
)
def test_bridge_without_parts_serves_pcm16(tmp_path: Path, absent: tuple[str, ...]):
    tree = copy_tree(tmp_path / "tree", absent)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"]
    found = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


def test_setting_that_requires_an_absent_part_is_named(tmp_path: Path):
    tree = copy_tree(tmp_path / "tree", ("recording.py",))
    script = (
        "from config import Settings; from frontend.app import create_app; "
        "create_app(Settings.load(environ={'SCA_BRIDGE_RECORD_FOLDER': 'there'}))"
    )
    found = subprocess.run([sys.executable, "-c", script], cwd=tree, capture_output=True, text=True, check=False)
    assert found.returncode != 0
    assert "bridge.record_folder requires frontend/recording.py, which this bridge does not have" in found.stderr


def test_part_that_is_broken_is_an_error(tmp_path: Path):
    """Absence is a choice, a failure of an import is not."""
    tree = copy_tree(tmp_path / "tree", ())
    (tree / "frontend" / "realtime" / "routes.py").write_text("import no_such_module\n")
    script = "from config import Settings; from frontend.app import create_app; create_app(Settings.load(environ={}))"
    found = subprocess.run([sys.executable, "-c", script], cwd=tree, capture_output=True, text=True, check=False)
    assert "No module named 'no_such_module'" in found.stderr
