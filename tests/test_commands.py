"""The one command, as a newcomer uses it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from engine.checkpoint import Checkpoint
from tests.conftest import (
    ANOTHER_BUILD,
    BUILD,
    GRAPHS,
    ROOT,
    Served,
    serve_environment,
    start_serving,
    wait_until_answered,
)
from tests.oracle import ScaOracle, one_shot_waveform
from tests.sound import official_stream
from tests.test_bridge import send_unless_closed


def sca(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("SCA_") or k in ("SCA_VENV", "SCA_PYTHON")}
    return subprocess.run(
        [ROOT / "sca", *map(str, arguments)],
        env={**clean, "SCA_BUILD_GRAPHS": str(GRAPHS), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_talk_gives_what_transformers_gives(served: Served, checkpoint: Checkpoint, extractor, pcm, tmp_path):
    """The whole path: a WAV through bridge and Triton, against transformers on the same samples."""
    said, heard = tmp_path / "in.wav", tmp_path / "out.wav"
    soundfile.write(said, pcm, 16000, subtype="PCM_16")
    run = sca("talk", said, heard, "--url", served.websocket)
    assert run.returncode == 0, run.stderr
    sound, rate = soundfile.read(heard, dtype="int16")
    assert rate == 24000
    assert abs(len(sound) / 24000 - len(pcm) / 16000) <= 0.32, "as long as its input, to a tick"

    oracle = ScaOracle(checkpoint.model, checkpoint.tokenizer, "ethan")  # Qwen's own default
    codes = torch.cat([oracle.tick(official)[1] for official in official_stream(extractor, pcm)], dim=1)
    expected = (one_shot_waveform(checkpoint.model.code2wav, codes) * 32767).round().numpy()
    assert np.abs(sound[: len(expected)] - expected).max() <= 1, "one step of PCM16"


@pytest.mark.parametrize(("rate", "channels"), [(48000, 2), (8000, 1)])
def test_talk_takes_a_wav_of_any_rate(served: Served, tmp_path, rate, channels):
    said = tmp_path / "in.wav"
    tone = np.sin(2 * np.pi * 300 * np.arange(rate) / rate)[:, None].repeat(channels, axis=1) * 0.3
    soundfile.write(said, tone, rate)
    run = sca("talk", said, tmp_path / "out.wav", "--url", served.websocket)
    assert run.returncode == 0, run.stderr
    assert soundfile.info(tmp_path / "out.wav").frames == 4 * 7680


def test_talk_says_when_nobody_answers(tmp_path):
    said = tmp_path / "in.wav"
    soundfile.write(said, np.zeros(16000), 16000)
    run = sca("talk", said, tmp_path / "out.wav", "--url", "ws://127.0.0.1:9/ws/pcm16")
    assert run.returncode == 1
    assert "sca: no conversation with ws://127.0.0.1:9/ws/pcm16" in run.stderr
    assert "Traceback" not in run.stderr


def test_talk_looks_at_the_output_first(tmp_path):
    soundfile.write(tmp_path / "in.wav", np.zeros(16000), 16000)
    run = sca("talk", tmp_path / "in.wav", tmp_path / "none" / "out.wav", "--url", "ws://127.0.0.1:9/")
    assert run.returncode == 1
    assert "out.wav cannot be written: there is no folder" in run.stderr


def test_a_second_serve_needs_a_folder_of_its_own(served: Served):
    environment = {k: v for k, v in serve_environment().items() if k.startswith("SCA_")}
    run = sca("serve", "--build", BUILD, **environment)
    assert run.returncode == 1
    assert "another ./sca serve runs on" in run.stderr
    assert "--build FOLDER" in run.stderr


def test_talk_says_when_a_file_is_no_sound(tmp_path):
    (tmp_path / "in.wav").write_text("not a sound")
    run = sca("talk", tmp_path / "in.wav", tmp_path / "out.wav")
    assert run.returncode == 1
    assert "in.wav cannot be read as sound" in run.stderr


@pytest.mark.parametrize("setting", ["BRIDGE_PORT", "TRITON_HTTP_PORT", "TRITON_GRPC_PORT", "TRITON_METRICS_PORT"])
def test_serve_names_the_port_in_use(setting):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        environment = {k: v for k, v in serve_environment().items() if k.startswith("SCA_")}
        run = sca("serve", **{**environment, f"SCA_{setting}": port})
    assert run.returncode == 1
    name = setting.lower().replace("_", ".", 1)
    assert f"sca: port {port} on 127.0.0.1 is in use; choose another {name}" in run.stderr


def test_serve_names_a_checkpoint_that_is_none(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    environment = {k: v for k, v in serve_environment().items() if k.startswith("SCA_")}
    run = sca("serve", "--build", tmp_path / "build", **{**environment, "SCA_QWEN_MODEL_ID": str(tmp_path)})
    assert run.returncode == 1
    assert "expected model type 'qwen3_omni_moe', got 'llama'" in run.stderr
    assert "Traceback" not in run.stderr


def test_a_wrong_setting_is_one_line():
    run = sca("serve", SCA_BRIDGE_PROT="1")
    assert run.returncode == 1
    assert run.stderr.startswith("sca: unknown environment variable SCA_BRIDGE_PROT")
    assert len(run.stderr.splitlines()) == 1


def test_doctor_finds_this_machine_in_order():
    ports = {k: v for k, v in serve_environment().items() if k.endswith("_PORT")}
    run = sca("doctor", **ports, SCA_QWEN_DEVICE_MAP="cpu")
    assert run.returncode == 0, run.stderr
    assert "It can serve" in run.stderr
    assert "FAIL" not in run.stderr
    for subject in ("Python", "packages", "Triton", "settings", "ports", "shared memory", "disk", "GPU", "checkpoint"):
        assert subject in run.stderr


def test_doctor_says_what_to_do_about_the_rest(tmp_path):
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


def processes_of(session: int) -> list[str]:
    found = subprocess.run(["ps", "-ww", "-eo", "pid,ppid,sid,args"], capture_output=True, text=True, check=True).stdout
    return [line for line in found.splitlines() if "tritonserver" in line or "python_backend_stub" in line or
            f" {session} " in line]  # fmt: skip


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_serve(tmp_path, ending):
    """Ctrl-C, a polite kill, and the one that nobody can catch; with a conversation open all the while."""
    from websockets.sync.client import connect

    before = set(processes_of(-1))
    environment = serve_environment()
    log = tmp_path / "log"
    process = start_serving(environment, log, ANOTHER_BUILD)
    try:
        wait_until_answered(f"http://127.0.0.1:{environment['SCA_BRIDGE_PORT']}/readyz", process, log)
        children = set(processes_of(process.pid)) - before
        assert sum("tritonserver" in line for line in children) >= 1
        assert sum("python_backend_stub" in line for line in children) >= 3
        with connect(f"ws://127.0.0.1:{environment['SCA_BRIDGE_PORT']}/ws/pcm16") as caller:
            caller.send(bytes(10240))
            process.send_signal(ending)
            process.wait(30)
            if ending is not signal.SIGKILL:
                assert process.returncode == 0
                assert "Traceback" not in log.read_text()
        deadline = time.monotonic() + 30
        while set(processes_of(process.pid)) - before:
            assert time.monotonic() < deadline, set(processes_of(process.pid)) - before
            time.sleep(0.2)
    finally:
        if process.poll() is None:
            process.kill()


def test_serve_brings_a_triton_that_ended_up_again(tmp_path):
    """A conversation that was open gets an error in words; the next one is served."""
    from websockets.exceptions import ConnectionClosed
    from websockets.sync.client import connect

    environment = serve_environment()
    log = tmp_path / "log"
    before = set(processes_of(-1))
    process = start_serving(environment, log, ANOTHER_BUILD)
    url = f"127.0.0.1:{environment['SCA_BRIDGE_PORT']}"
    try:
        wait_until_answered(f"http://{url}/readyz", process, log)
        (triton,) = [line for line in set(processes_of(-1)) - before if "bin/tritonserver" in line]
        with connect(f"ws://{url}/ws/pcm16") as caller:
            caller.send(bytes(10240))
            while isinstance(caller.recv(timeout=20), str):
                pass
            os.kill(int(triton.split()[0]), signal.SIGKILL)
            send_unless_closed(caller, bytes(10240))
            messages = []
            try:
                while True:
                    messages.append(caller.recv(timeout=20))
            except ConnectionClosed as error:
                closed = error
        assert closed.rcvd.code == 1011
        assert any("tick_failed" in message for message in messages if isinstance(message, str)), messages
        deadline = time.monotonic() + 120
        while "Triton is back after" not in log.read_text():
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        wait_until_answered(f"http://{url}/readyz", process, log)
        with connect(f"ws://{url}/ws/pcm16") as caller:
            caller.send(bytes(10240))
            while isinstance(caller.recv(timeout=20), str):
                pass
        assert "Triton ended. Restarting Triton; its conversations are lost" in log.read_text()
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)
    assert not list(Path("/dev/shm").glob(f"sca-*-{process.pid}-*")), "no shared memory is left"


def test_a_triton_that_keeps_ending_is_given_up():
    from commands.serve import Supervisor

    class EndingTriton:
        restarts = 0

        def is_running(self) -> bool:
            return False

        def log_tail(self) -> str:
            return "out of luck"

        def restart(self) -> None:
            self.restarts += 1

        def wait_until_ready(self, given_up) -> None:
            """It is, for a moment."""

    triton = EndingTriton()
    supervisor = Supervisor(triton, threading.Event())
    assert all(supervisor.keep_running() for _ in range(3))
    assert not supervisor.keep_running()
    assert triton.restarts == 3
    assert "Triton has failed 4 times in 10 minutes:\nout of luck" in supervisor.failure


def test_a_start_that_fails_is_tried_again():
    from commands.serve import Supervisor
    from launch.triton_server import TritonError

    class LateTriton:
        restarts, runs = 0, False

        def is_running(self) -> bool:
            return self.runs

        def log_tail(self) -> str:
            return "out of luck"

        def restart(self) -> None:
            self.restarts += 1

        def wait_until_ready(self, given_up) -> None:
            if self.restarts < 2:
                raise TritonError("Triton ended while loading")
            self.runs = True

    triton = LateTriton()
    supervisor = Supervisor(triton, threading.Event())
    assert supervisor.keep_running(), "not yet"
    assert supervisor.failure
    assert supervisor.keep_running()
    assert (triton.restarts, supervisor.failure) == (2, "")


def test_shared_memory_of_a_killed_serve_is_cleared(tmp_path):
    from launch.triton_server import remove_orphaned_regions

    gone = subprocess.Popen(["true"])
    gone.wait()
    here = os.stat("/proc/self/ns/pid").st_ino
    names = [
        f"sca-{here}-{gone.pid}-region", f"sca-{here}-{os.getpid()}-region", f"sca-1-{gone.pid}-elsewhere", "another",
    ]  # fmt: skip
    for name in names:
        (tmp_path / name).touch()
    remove_orphaned_regions(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[1:])


def test_doctor_asks_a_newcomer_for_nothing_that_only_the_checks_need(monkeypatch):
    """`./sca serve` makes an environment without the linters, the browser driver and the TensorRT tools."""
    from importlib import metadata

    from commands import doctor

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
    """Before anything runs: an ordinary user without `sudo -n` is told the command."""
    from commands import debian
    from commands.console import UserError

    monkeypatch.setattr(debian.shutil, "which", lambda program: None if program == "sox" else f"/usr/bin/{program}")
    monkeypatch.setattr(debian, "_privilege", lambda: None)
    with pytest.raises(UserError, match="sudo apt-get install --yes --no-install-recommends sox"):
        debian.install_missing()


def test_missing_programs_are_installed(monkeypatch):
    from commands import debian

    ran: list[list[str]] = []
    monkeypatch.setattr(debian.shutil, "which", lambda program: None if program == "sox" else f"/usr/bin/{program}")
    monkeypatch.setattr(debian, "_privilege", lambda: ["sudo", "-n"])
    monkeypatch.setattr(debian, "_run_shown", ran.append)
    debian.install_missing()
    assert [command[:3] for command in ran] == [["sudo", "-n", "apt-get"]] * 2
    assert ran[1][-1] == "sox"


def test_loading_shows_how_far_the_weights_are(tmp_path):
    """As transformers' own bar tells it in Triton's log."""
    from launch.triton_server import loading_progress

    log = tmp_path / "log"
    log.write_bytes(b"I1124 server.cc:1\n")
    assert loading_progress(log) == ""
    with log.open("ab") as more:
        more.write(b"Loading weights:   0%|   | 0/366\rLoading weights:  45%|###  | 165/366 [00:01<00:01")
    assert loading_progress(log) == "45%"
