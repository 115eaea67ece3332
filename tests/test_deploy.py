"""Contents of the images, run without Docker: the install script, the copied files, the entry points."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from client.python_websocket import talk
from config import Settings
from launch.triton_install import TritonInstall
from tests.conftest import ROOT, Served, free_port, serve_environment, wait_until_answered

IN_CONTAINERS = ("SCA_TRITON_HOST", "SCA_TRITON_INSTANCE", "SCA_BRIDGE_HOST")  # settings that differ in a container
DOCKERFILES = ("Dockerfile", "deploy/bridge.Dockerfile")


def copied(dockerfile: str) -> list[str]:
    return re.findall(r"^COPY (\S+) ", (ROOT / dockerfile).read_text(), flags=re.MULTILINE)


def image(dockerfile: str, folder: Path) -> Path:
    """Return a folder like the image's working directory: it holds only the files that the Dockerfile copies."""
    for source in copied(dockerfile):
        target = folder / source
        target.parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy2
        copy(ROOT / source, target)
    return folder


def in_image(folder: Path, python: Path, **environment: str) -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("SCA_")}
    path = f"{python.parent}:{os.environ['PATH']}"
    return {**clean, "PATH": path, "PYTHONPATH": str(folder), **environment}


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_linter_of_dockerfiles_reports_no_finding(dockerfile):
    run = subprocess.run([Path(sys.executable).parent / "hadolint", ROOT / dockerfile], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_copied_files_exist(dockerfile):
    assert copied(dockerfile)
    assert [source for source in copied(dockerfile) if not (ROOT / source).exists()] == []


def test_compose_file_fits_the_images_and_the_settings():
    compose = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())
    triton, bridge = compose["services"]["triton"], compose["services"]["bridge"]
    assert triton["shm_size"] == "1g"
    assert bridge["environment"]["SCA_TRITON_HOST"] == "triton", "the bridge finds Triton by its service's name"
    second = compose["services"]["triton-1"]
    assert second["profiles"] == ["two-gpus"]
    assert second["environment"] == triton["environment"]
    devices = [one["deploy"]["resources"]["reservations"]["devices"][0] for one in (triton, second)]
    assert (devices[0]["count"], devices[1]["device_ids"]) == (1, ["1"])
    assert not set(second["ports"]) & set(triton["ports"])
    assert second["volumes"][0].partition(":")[0] in compose["volumes"]
    for service in (triton, second, bridge):
        build = service["build"]
        dockerfile = ROOT / "deploy" / build["context"] / build.get("dockerfile", "Dockerfile")
        assert dockerfile.is_file()
        exposed = re.search(r"^EXPOSE (.+)$", dockerfile.read_text(), flags=re.MULTILINE)
        assert {port.rsplit(":", 1)[1] for port in service["ports"]} == set(exposed[1].split())
        passed = set(service["environment"]) - {"TENSORRT", "HF_HOME"}
        every = {
            f"SCA_{section}_{key}".upper()
            for section, keys in asdict(Settings.load(environ={})).items()
            for key in keys
        }
        assert passed | set(IN_CONTAINERS) == every, "every setting can be changed from outside"
        unset = {name for name, value in service["environment"].items() if value is None}
        assert unset == every - set(IN_CONTAINERS), "unset is as config/default.toml says"


def test_bridge_image_connects_to_triton(served: Served, pcm, tmp_path):
    """The image has only the copied files and the environment that the Dockerfile's script installs."""
    folder = image("deploy/bridge.Dockerfile", tmp_path / "sca")
    venv = tmp_path / "venv"
    subprocess.run(
        [folder / "deploy" / "install.sh", "bridge", venv], env={**os.environ, "SCA_PYTHON": sys.executable}, check=True
    )
    installed = {path.name for path in venv.glob("lib/python3*/site-packages/*")}
    assert "fastapi" in installed
    assert "torch" not in installed, "slim"
    python, port, log = venv / "bin" / "python3", free_port(), tmp_path / "log"
    environment = in_image(
        folder, python, SCA_BRIDGE_PORT=str(port), SCA_TRITON_GRPC_PORT=str(served.settings.triton.grpc_port)
    )
    with log.open("w") as output:
        bridge = subprocess.Popen([python, "-m", "commands", "bridge"], env=environment, cwd=folder, stderr=output)
    try:
        wait_until_answered(f"http://127.0.0.1:{port}/readyz", bridge, log)
        answer = asyncio.run(talk(f"ws://127.0.0.1:{port}/ws/pcm16", pcm[:5120].tobytes()))
        assert len(answer.pcm) >= 15360
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as page:
            assert b"<title>sca</title>" in page.read()
    finally:
        bridge.terminate()
        assert bridge.wait(20) == 0


def test_entry_point_of_the_server_image_serves(tmp_path):
    """The image's files and entry point, with the Triton of the wheel in place of the container's."""
    folder = image("Dockerfile", tmp_path / "sca")
    install = TritonInstall.find()
    runtime = install.lay_out(tmp_path / "runtime")
    environment = {k: v for k, v in serve_environment().items() if k.startswith("SCA_")}
    path = {**install.environment(), **in_image(folder, Path(sys.executable), **environment)}
    path["PATH"] = f"{Path(sys.executable).parent}:{install.server.parent}:{os.environ['PATH']}"
    log = tmp_path / "log"
    with log.open("w") as output:
        server = subprocess.Popen(
            [folder / "deploy" / "serve-triton.sh", f"--backend-directory={runtime / 'backends'}"],
            env={**path, "BUILD_FOLDER": str(tmp_path / "build")},
            cwd=folder,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_until_answered(
            f"http://127.0.0.1:{environment['SCA_TRITON_HTTP_PORT']}/v2/models/duplex/ready", server, log
        )
    finally:
        server.terminate()
        server.wait(60)
