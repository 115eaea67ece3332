"""LiveKit's plugin and Pipecat's service, unmodified; both are large, and run only under `./sca test --long`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import BUILD, ROOT, Served

CLIENTS = Path(__file__).parent / "clients"
PACKAGES = ("livekit-agents==1.8.9", "livekit-plugins-openai==1.8.9", "pipecat-ai[openai]==1.14.0")


@pytest.fixture(scope="module")
def python() -> Path:
    """Return a Python with both: the packages require other versions of numpy and soundfile than the Triton wheel."""
    venv = BUILD.parent / "clients"
    python = venv / "bin" / "python"
    marker = venv / "installed"
    if not marker.exists() or marker.read_text() != repr(PACKAGES):
        subprocess.run([sys.executable, "-m", "venv", "--clear", venv], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
        marker.write_text(repr(PACKAGES))
    return python


@pytest.mark.long
@pytest.mark.parametrize("client", ["livekit", "pipecat"])
def test_client_speaks_twice_and_interrupts(served_barista: Served, python: Path, client: str):
    address = f"{served_barista.http}/v1"
    if client == "pipecat":
        address = address.replace("http", "ws") + "/realtime"
    run = subprocess.run(
        [python, CLIENTS / f"{client}_client.py", address], cwd=ROOT, capture_output=True, text=True, timeout=180
    )
    assert run.returncode == 0, run.stdout + run.stderr
