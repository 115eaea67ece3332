"""No program imports a module from the directory that it is called in."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from commands.serve import gpu_count
from tests.conftest import ROOT, serve_environment

NAMES = ("config.py", "queue.py", "json.py", "ctypes.py", "torch.py", "commands.py", "sitecustomize.py", "client")
HOSTILE = "raise SystemExit('imported from the current directory: ' + __file__)\n"


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    folder = tmp_path / "hostile"
    folder.mkdir()
    for name in NAMES:
        file = folder / name
        if not file.suffix:
            file.mkdir()
            file /= "__init__.py"
        file.write_text(HOSTILE)
    return folder


def run_in(folder: Path, *command: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("python_path", ["", ":", ".", "hostile/..:./"])
@pytest.mark.parametrize("command", [("--version",), ("talk", "none.wav", "out.wav"), ("bridge", "--help")])
def test_sca_imports_nothing_from_the_current_directory(command, python_path: str, hostile: Path):
    run = run_in(hostile, ROOT / "sca", *command, PYTHONPATH=python_path)
    assert "current directory" not in run.stdout + run.stderr
    assert "none.wav" in run.stderr if command[0] == "talk" else run.returncode == 0, run.stderr


def test_export_that_serve_starts_imports_nothing_from_the_current_directory(hostile: Path):
    """The checkpoint is refused after every import."""
    environment = serve_environment() | {"SCA_QWEN_MODEL_ID": str(hostile)}
    (hostile / "config.json").write_text('{"model_type": "llama"}')
    run = run_in(hostile, ROOT / "sca", "serve", "--build", hostile / "build", **environment)
    assert "expected model type 'qwen3_omni_moe', got 'llama'" in run.stderr


def test_count_of_gpus_imports_nothing_from_the_current_directory(hostile: Path, monkeypatch):
    monkeypatch.chdir(hostile)
    assert gpu_count() >= 0


def test_entry_keeps_absolute_entries_of_the_python_path(hostile: Path):
    code = "import sys, runpy; runpy.run_path(sys.argv[1]); print(sys.path)"
    run = run_in(ROOT, sys.executable, "-c", code, ROOT / "commands" / "entry" / "__main__.py", PYTHONPATH="/some")
    assert "'/some'" in run.stdout
    assert "''" not in run.stdout
