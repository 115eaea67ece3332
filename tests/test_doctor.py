"""`./sca doctor`, and the Debian packages that the checks install."""

from __future__ import annotations

import socket
from importlib import metadata

import pytest

from commands import debian, doctor
from commands.console import UserError
from tests.conftest import sca, serve_environment


def test_doctor_finds_this_machine_in_order():
    ports = {name: value for name, value in serve_environment().items() if name.endswith("_PORT")}
    run = sca("doctor", **ports, SCA_QWEN_DEVICE_MAP="cpu")
    assert run.returncode == 0, run.stderr
    assert "It can serve" in run.stderr
    assert "FAIL" not in run.stderr
    for subject in ("Python", "packages", "Triton", "settings", "ports", "shared memory", "disk", "GPU", "checkpoint"):
        assert subject in run.stderr


def test_doctor_names_the_remedy_of_each_problem(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        run = sca("doctor", SCA_QWEN_MODEL_ID=str(tmp_path / "none"), SCA_BRIDGE_PORT=str(port))
    assert run.returncode == 1
    assert f"bridge.port {port} is in use" in run.stderr
    assert "SCA_BRIDGE_PORT=" in run.stderr
    assert "FAIL checkpoint" in run.stderr
    assert "It cannot serve yet" in run.stderr


def test_doctor_requires_no_package_that_only_the_checks_need(monkeypatch):
    """`./sca serve` makes an environment without the linters, the browser driver and the TensorRT tools."""
    absent = {"ast-serialize", "mypy", "pytest", "ruff", "selenium", "polygraphy", "nvidia-modelopt"}
    version = metadata.version

    def version_in_that_environment(name: str) -> str:
        if name in absent:
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(metadata, "version", version_in_that_environment)
    assert doctor.packages().ok
    absent.add("fastapi")
    assert "fastapi is missing" in doctor.packages().found


def test_programs_that_cannot_be_installed_are_named(monkeypatch):
    """Before anything runs: a user without `sudo -n` gets the command to run."""
    monkeypatch.setattr(debian.shutil, "which", lambda program: None if program == "sox" else f"/usr/bin/{program}")
    monkeypatch.setattr(debian, "_privilege", lambda: None)
    with pytest.raises(UserError, match="sudo apt-get install --yes --no-install-recommends sox"):
        debian.install_missing()


def test_missing_programs_are_installed(monkeypatch):
    ran: list[list[str]] = []
    monkeypatch.setattr(debian.shutil, "which", lambda program: None if program == "sox" else f"/usr/bin/{program}")
    monkeypatch.setattr(debian, "_privilege", lambda: ["sudo", "-n"])
    monkeypatch.setattr(debian, "_run_shown", ran.append)
    debian.install_missing()
    assert [command[:3] for command in ran] == [["sudo", "-n", "apt-get"]] * 2
    assert ran[1][-1] == "sox"
