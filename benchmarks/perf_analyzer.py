"""NVIDIA's perf_analyzer against a running Triton: a sequence for each conversation, a tick for each request.

It sends a conversation's ticks 320 ms apart and the conversations evenly spread, and keeps when each request went and
came. Its own percentiles count from the sending; a deadline counts from when the tick was due, so both are read from
what it recorded.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from benchmarks.report import Row
from benchmarks.server import Counters
from config import Settings
from config.settings import INPUT_HZ
from launch.triton_install import TritonInstall

WHEEL = "tritonclient==2.50.0"  # the last whose perf_analyzer runs on glibc 2.34
MODEL = "duplex"
WARM_UP_TICKS = 4
GRACE_S = 60  # past the length of a run, when Triton must have died: perf_analyzer would wait for ever
IDS = 1000  # sequence ids of a run
LIBRARIES = {"libcudart.so.12": "libcudart-*.so.12*", "libb64.so.0d": "libb64-*.so.0d"}  # as the Triton wheel has them


class PerfAnalyzerError(RuntimeError):
    """perf_analyzer is not to be had, or failed; the message ends with what it said."""


def bench_perf_analyzer(
    settings: Settings, conversations: Sequence[int], seconds: float, wav: Path, folder: Path
) -> list[Row]:
    """A row for each number of conversations; its files lie in `folder`. Raises `PerfAnalyzerError`."""
    folder.mkdir(parents=True, exist_ok=True)
    binary, libraries = find_binary(folder)
    ticks = WARM_UP_TICKS + max(1, round(seconds * 1000 / settings.audio.tick_ms))
    data = folder / "input.json"
    data.write_text(json.dumps(input_data(read_wav(wav), settings.audio.input_samples, ticks)), encoding="utf-8")
    rows = []
    for run, count in enumerate(conversations):
        command = arguments(settings, count, ticks, data.name, first_id=1 + run * IDS)
        before = Counters.read(settings)
        profile = _run([str(binary), *command], libraries, folder, f"{count}.json", ticks * settings.audio.tick_ms)
        after = Counters.read(settings)
        row = row_of(profile, count, settings.audio.tick_ms)
        mean_ms = float(np.mean([_latency_ms(request) for request in profile["requests"]]))
        rows.append(replace(row, stages_ms=after.stages_since(before, mean_ms), memory_bytes=after.engine_bytes))
    return rows


def find_binary(folder: Path) -> tuple[Path, Path | None]:
    """perf_analyzer from PATH, else from its wheel, and where its libraries lie. Raises `PerfAnalyzerError`."""
    found = shutil.which("perf_analyzer")
    if found:
        return Path(found), None
    unpacked = folder / WHEEL
    binary = unpacked / "tritonclient-2.50.0.data" / "data" / "bin" / "perf_analyzer"
    if not binary.exists():
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        download += ["--platform", "manylinux1_x86_64", "--only-binary=:all:", "--dest", str(unpacked), WHEEL]
        made = subprocess.run(download, capture_output=True, text=True, check=False)
        if made.returncode != 0:
            raise PerfAnalyzerError(f"perf_analyzer is not on PATH, and {WHEEL} cannot be had: {made.stderr[-500:]}")
        for wheel in unpacked.glob("*.whl"):
            zipfile.ZipFile(wheel).extractall(unpacked)
            wheel.unlink()
        binary.chmod(0o755)
    libraries = unpacked / "lib"
    libraries.mkdir(exist_ok=True)
    for name, pattern in LIBRARIES.items():
        there = next(TritonInstall.find().libraries.glob(pattern), None)
        if there and not (libraries / name).exists():
            (libraries / name).symlink_to(there)
    return binary, libraries


def read_wav(wav: Path) -> np.ndarray:
    """16-bit mono 16 kHz samples. Raises `PerfAnalyzerError`."""
    try:
        samples, rate = soundfile.read(wav, dtype="int16")
    except soundfile.SoundFileError as error:
        raise PerfAnalyzerError(f"{wav} cannot be read: {error}") from error
    if rate != INPUT_HZ or samples.ndim != 1:
        raise PerfAnalyzerError(f"{wav} has {rate} Hz and shape {samples.shape}, expected 16000 Hz mono")
    return samples


def input_data(samples: np.ndarray, tick_samples: int, ticks: int) -> dict[str, Any]:
    """perf_analyzer's input: one sequence, the sound from its beginning as often as it takes."""
    sound = np.resize(samples, ticks * tick_samples).astype("<i2").reshape(ticks, tick_samples)
    return {"data": [[{"AUDIO_IN": {"b64": base64.b64encode(tick.tobytes()).decode()}} for tick in sound]]}


def arguments(settings: Settings, count: int, ticks: int, data: str, first_id: int) -> list[str]:
    """The command line behind the binary: `count` sequences of `ticks` requests, once, in real time."""
    rate = count * 1000 / settings.audio.tick_ms
    return [
        *("-m", MODEL, "-u", f"{settings.triton.host}:{settings.triton.grpc_port}", "-i", "grpc", "--streaming"),
        *("--input-data", data, "--request-rate-range", f"{rate:g}", "--request-distribution", "constant"),
        *("--num-of-sequences", str(count), "--max-threads", str(count), "--serial-sequences"),
        *("--sequence-id-range", f"{first_id}:{first_id + IDS}", "--request-count", str(count * ticks)),
        *("--profile-export-file", f"{count}.json"),
    ]


def row_of(profile: Mapping[str, Any], count: int, tick_ms: int) -> Row:
    """What perf_analyzer recorded of `count` conversations, as a row. Raises `PerfAnalyzerError` when requests miss."""
    conversations: dict[int, list[Mapping[str, Any]]] = {}
    for request in sorted(profile["requests"], key=lambda request: request["timestamp"]):
        conversations.setdefault(request["sequence_id"], []).append(request)
    lengths = {len(requests) for requests in conversations.values()}
    if len(conversations) != count or len(lengths) != 1:
        raise PerfAnalyzerError(f"perf_analyzer ran {len(conversations)} sequences of {sorted(lengths)} requests")
    latencies_s = [
        (_answered(request) - requests[0]["timestamp"]) / 1e9 - tick * tick_ms / 1000
        for requests in conversations.values()
        for tick, request in enumerate(requests)
        if tick >= WARM_UP_TICKS
    ]
    return Row.of("perf_analyzer", count, tick_ms, latencies_s, paced=True)


def _run(command: Sequence[str], libraries: Path | None, folder: Path, profile: str, length_ms: float) -> Any:
    (folder / profile).unlink(missing_ok=True)
    known = os.environ.get("LD_LIBRARY_PATH", "")
    environment = {**os.environ, "LD_LIBRARY_PATH": f"{libraries}:{known}"} if libraries else dict(os.environ)
    try:
        ran = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=length_ms / 1000 + GRACE_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise PerfAnalyzerError(f"perf_analyzer did not end within {error.timeout:g} s: is Triton there?") from error
    if ran.returncode != 0 or not (folder / profile).exists():
        raise PerfAnalyzerError(f"perf_analyzer ended with {ran.returncode}:\n{(ran.stdout + ran.stderr)[-2000:]}")
    return json.loads((folder / profile).read_text(encoding="utf-8"))["experiments"][0]


def _answered(request: Mapping[str, Any]) -> int:
    """ns; a tick has one response."""
    return int(request["response_timestamps"][0])


def _latency_ms(request: Mapping[str, Any]) -> float:
    return (_answered(request) - int(request["timestamp"])) / 1e6
