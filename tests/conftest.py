"""Fixtures and helpers of all tests: the random checkpoint, audio, settings, and running servers."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers.utils import logging

from config import Settings
from config.settings import QwenSettings
from engine.checkpoint import Checkpoint, load_checkpoint
from engine.engine import Engine
from engine.tick import TickInput
from export.code_predictor import export_code_predictor
from export.repository import find_checkpoint
from tests.sound import SENTENCE, speech, stream_inputs, synthesize, with_knock

ROOT = Path(__file__).parent.parent
BUILD = ROOT / "build" / "test"
TURNS_BUILD = ROOT / "build" / "turns_test"
BARISTA_BUILD = ROOT / "build" / "barista_test"
ANOTHER_BUILD = ROOT / "build" / "another_test"
GRAPHS = ROOT / "build" / "test_graphs"  # exported graphs and the random checkpoint, shared by all builds of tests
START_TIMEOUT_S = 240
IDLE_TIMEOUT_S = 6
RESUME_S = 4
GREEDY = {"text_temperature": 0.0, "temperature": 0.0, "repetition_penalty": 1.0}
CPU = QwenSettings(model_id="random", device_map="cpu", torch_dtype="float32", lora="")

pytest_plugins = ("tests.groups", "tests.pair", "tests.page")

CHANCE = random.SystemRandom()  # hypothesis seeds the global generator, the same in every process
PORTS = range(10_000, 32_000)  # below the ports that the system uses for outgoing connections

logging.set_verbosity_error()
logging.disable_progress_bar()
torch.manual_seed(0)
torch.set_num_threads(1)  # as in the engine: two are no faster, and torch's idle threads slow the servers down


@pytest.fixture(scope="session")
def questions() -> list[np.ndarray]:
    """Return two spoken questions, in English and in Korean."""
    return [
        synthesize(SENTENCE, "en"),
        synthesize("내일 서울 날씨가 어떤지 알려 주시겠어요? 비가 올까요?", "ko"),
    ]


@pytest.fixture(scope="session")
def interruption() -> np.ndarray:
    """Return a spoken interruption."""
    return synthesize("Wait, stop. Make it two people instead.", "en")


@pytest.fixture(scope="session")
def pcm() -> np.ndarray:
    return with_knock(speech())


@pytest.fixture(scope="session")
def settings() -> Settings:
    """Return the defaults, except: dialect `sca`, greedy, on the CPU; the environment is ignored."""
    return Settings.load(environ={}).with_values(
        qwen={"model_id": "random", "device_map": "cpu", "torch_dtype": "float32"},
        triton={"instance": "cpu"},
        engine={"dialect": "sca", "tick_share": 0},
        sampling=GREEDY,
        build={"graphs": str(GRAPHS)},
    )


@pytest.fixture(scope="session")
def turn_settings(settings: Settings) -> Settings:
    """Return `settings` in the dialect `turn`, with answers of some seconds and transformers' repetition penalty."""
    return settings.with_values(
        engine={"dialect": "turn"},
        sampling={"repetition_penalty": 1.05},
        turn={"answer_tokens": 40, "answer_frames": 80},
    )


@pytest.fixture(scope="session")
def checkpoint_folder(settings: Settings) -> str:
    return find_checkpoint(settings, BUILD, print)


@pytest.fixture(scope="session")
def checkpoint(checkpoint_folder: str) -> Checkpoint:
    return load_checkpoint(checkpoint_folder, CPU)


@pytest.fixture(scope="session")
def extractor(checkpoint_folder: str) -> Any:
    from transformers import WhisperFeatureExtractor

    return WhisperFeatureExtractor.from_pretrained(checkpoint_folder)


@pytest.fixture(scope="session")
def predictor(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the code predictor's ONNX graphs."""
    folder = tmp_path_factory.mktemp("predictor")
    export_code_predictor(checkpoint.model.talker, folder)
    return folder


@pytest.fixture
def engine(checkpoint: Checkpoint, settings: Settings) -> Engine:
    return Engine(checkpoint, settings)


@pytest.fixture(scope="session")
def ticks(extractor: Any, pcm: np.ndarray) -> list[TickInput]:
    """Return the speech as the engine's input, tick by tick."""
    return stream_inputs(extractor, pcm)


def note_uniforms(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list to which the offset of every random number is appended that the first row uses from now on."""
    sampling, used = engine.slots.sampling, []
    uniforms = sampling.uniforms

    def noting(slots: torch.Tensor, offsets: torch.Tensor, count: int) -> torch.Tensor:
        used.extend(range(int(offsets[0]), int(offsets[0]) + count))
        return uniforms(slots, offsets, count)

    monkeypatch.setattr(sampling, "uniforms", noting)
    return used


@dataclass
class Served:
    """A running `./sca serve`."""

    settings: Settings
    repository: Path
    process: subprocess.Popen[str]

    @property
    def http(self) -> str:
        return f"http://127.0.0.1:{self.settings.bridge.port}"

    @property
    def websocket(self) -> str:
        return f"ws://127.0.0.1:{self.settings.bridge.port}/ws/pcm16"

    @property
    def triton_http(self) -> str:
        return f"127.0.0.1:{self.settings.triton.http_port}"

    @property
    def triton_grpc(self) -> str:
        return f"127.0.0.1:{self.settings.triton.grpc_port}"


def free_port() -> int:
    """Return a port that another process is unlikely to use before the caller does."""
    while True:
        port = CHANCE.choice(PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def serve_environment(dialect: str = "sca") -> dict[str, str]:
    """Return an environment with free ports, the CPU, greedy sampling, and limits that a test can reach."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SCA_")}
    own = {name: os.environ[name] for name in ("SCA_VENV", "SCA_PYTHON") if name in os.environ}
    ports = ("BRIDGE_PORT", "TRITON_HTTP_PORT", "TRITON_GRPC_PORT", "TRITON_METRICS_PORT")
    return {
        **clean,
        **own,
        **{f"SCA_{name}": str(free_port()) for name in ports},
        "SCA_QWEN_MODEL_ID": "random",
        "SCA_QWEN_DEVICE_MAP": "cpu",
        "SCA_BUILD_GRAPHS": str(GRAPHS),
        "SCA_TRITON_INSTANCE": "cpu",
        "SCA_ENGINE_SLOTS": "4",
        "SCA_ENGINE_TICK_SHARE": "0",
        "SCA_ENGINE_DIALECT": dialect,
        "SCA_SAMPLING_TEMPERATURE": "0",
        "SCA_SAMPLING_TEXT_TEMPERATURE": "0",
        "SCA_SAMPLING_REPETITION_PENALTY": "1" if dialect == "sca" else "1.05",
        "SCA_ENGINE_IDLE_TIMEOUT_S": str(IDLE_TIMEOUT_S),
        "SCA_BRIDGE_READ_TIMEOUT_S": "3",
        "SCA_BRIDGE_RESUME_S": str(RESUME_S),
    }


def sca(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end, with the settings that `environment` names and no others."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("SCA_") or k in ("SCA_VENV", "SCA_PYTHON")}
    return subprocess.run(
        [ROOT / "sca", *map(str, arguments)],
        env={**clean, "SCA_BUILD_GRAPHS": str(GRAPHS), **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def start_serving(environment: dict[str, str], log: Path, build: Path, *more: str) -> subprocess.Popen[str]:
    with log.open("w") as output:
        return subprocess.Popen(
            [ROOT / "sca", "serve", "--build", build, *more],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )


def wait_until_answered(url: str, process: subprocess.Popen[str], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.3)
    raise AssertionError(f"{url} did not answer for {START_TIMEOUT_S} s:\n{log.read_text()}")


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Run a server of the dialect `sca`, which emits audio in every tick."""
    yield from serve(serve_environment(), tmp_path_factory.mktemp("serve") / "log", BUILD)


@pytest.fixture(scope="session")
def served_turns(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Run a server of the default dialect, `turn`."""
    yield from serve(serve_environment("turn"), tmp_path_factory.mktemp("turns") / "log", TURNS_BUILD)


@pytest.fixture(scope="session")
def served_barista(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Run a server of the default checkpoint."""
    environment = serve_environment("turn")
    del environment["SCA_QWEN_MODEL_ID"]
    yield from serve(environment, tmp_path_factory.mktemp("barista") / "log", BARISTA_BUILD)


def serve(environment: dict[str, str], log: Path, build: Path, *more: str) -> Iterator[Served]:
    """Run a server until the generator is closed; `more` are arguments of its command."""
    settings = Settings.load(environ={k: v for k, v in environment.items() if k.startswith("SCA_")})
    process = start_serving(environment, log, build, *more)
    running = Served(settings, build / "repository", process)
    try:
        wait_until_answered(f"{running.http}/readyz", process, log)
        yield running
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(30)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="session")
def locked(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Run a bridge with keys; see `tests.bridges.locked_bridge`."""
    from tests.bridges import locked_bridge

    with locked_bridge(served, tmp_path_factory.mktemp("locked")) as running:
        yield running
