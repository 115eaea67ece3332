"""NVIDIA's perf_analyzer against a running Triton: a sequence for each conversation, a tick for each request.

perf_analyzer sends a conversation's ticks 320 ms apart and the conversations evenly spread, and records the times of
each request and response. Its own percentiles count from the sending; a deadline counts from the due time of the tick,
so the rows are computed from the recorded times.
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

from benchmarks.row import Row
from benchmarks.server import Counters
from config import Settings
from config.settings import INPUT_HZ
from launch.triton_install import TritonInstall

WHEEL = "tritonclient==2.50.0"  # the last release whose perf_analyzer runs on glibc 2.34
MODEL = "duplex"
WARM_UP_TICKS = 4
GRACE_S = 60  # timeout after the length of a run: perf_analyzer waits forever for a Triton that has died
IDS = 1000  # sequence ids of a run
LIBRARIES = {"libcudart.so.12": "libcudart-*.so.12*", "libb64.so.0d": "libb64-*.so.0d"}  # names in the Triton wheel


class PerfAnalyzerError(RuntimeError):
    """perf_analyzer is not available or failed; the message ends with its output."""


def bench_perf_analyzer(
    settings: Settings, conversations: Sequence[int], seconds: float, wav: Path, folder: Path
) -> list[Row]:
    """Measure each number of conversations, with files in `folder`. Raises `PerfAnalyzerError`."""
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
    """Return perf_analyzer from PATH, or from its wheel with its libraries' folder. Raises `PerfAnalyzerError`."""
    installed = shutil.which("perf_analyzer")
    if installed:
        return Path(installed), None
    unpacked = folder / WHEEL
    binary = unpacked / "tritonclient-2.50.0.data" / "data" / "bin" / "perf_analyzer"
    if not binary.exists():
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        download += ["--platform", "manylinux1_x86_64", "--only-binary=:all:", "--dest", str(unpacked), WHEEL]
        result = subprocess.run(download, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            error = result.stderr[-500:]
            raise PerfAnalyzerError(f"perf_analyzer is not on PATH, and the download of {WHEEL} failed: {error}")
        for wheel in unpacked.glob("*.whl"):
            zipfile.ZipFile(wheel).extractall(unpacked)
            wheel.unlink()
        binary.chmod(0o755)
    libraries = unpacked / "lib"
    libraries.mkdir(exist_ok=True)
    for name, pattern in LIBRARIES.items():
        library = next(TritonInstall.find().libraries.glob(pattern), None)
        if library and not (libraries / name).exists():
            (libraries / name).symlink_to(library)
    return binary, libraries


def read_wav(wav: Path) -> np.ndarray:
    """Return 16-bit mono 16 kHz samples. Raises `PerfAnalyzerError`."""
    try:
        samples, rate = soundfile.read(wav, dtype="int16")
    except soundfile.SoundFileError as error:
        raise PerfAnalyzerError(f"{wav} cannot be read: {error}") from error
    if rate != INPUT_HZ or samples.ndim != 1:
        raise PerfAnalyzerError(f"{wav}: expected 16000 Hz mono, got {rate} Hz and shape {samples.shape}")
    return samples


def input_data(samples: np.ndarray, tick_samples: int, ticks: int) -> dict[str, Any]:
    """Return perf_analyzer's input: one sequence, the audio repeated to `ticks` ticks."""
    audio = np.resize(samples, ticks * tick_samples).astype("<i2").reshape(ticks, tick_samples)
    return {"data": [[{"AUDIO_IN": {"b64": base64.b64encode(tick.tobytes()).decode()}} for tick in audio]]}


def arguments(settings: Settings, count: int, ticks: int, data: str, first_id: int) -> list[str]:
    """Return the arguments of the binary: `count` sequences of `ticks` requests, once, in real time."""
    rate = count * 1000 / settings.audio.tick_ms
    return [
        *("-m", MODEL, "-u", f"{settings.triton.host}:{settings.triton.grpc_port}", "-i", "grpc", "--streaming"),
        *("--input-data", data, "--request-rate-range", f"{rate:g}", "--request-distribution", "constant"),
        *("--num-of-sequences", str(count), "--max-threads", str(count), "--serial-sequences"),
        *("--sequence-id-range", f"{first_id}:{first_id + IDS}", "--request-count", str(count * ticks)),
        *("--profile-export-file", f"{count}.json"),
    ]


def row_of(profile: Mapping[str, Any], count: int, tick_ms: int) -> Row:
    """Return the recorded times of `count` conversations. Raises `PerfAnalyzerError` if requests are missing."""
    conversations: dict[int, list[Mapping[str, Any]]] = {}
    for request in sorted(profile["requests"], key=lambda request: request["timestamp"]):
        conversations.setdefault(request["sequence_id"], []).append(request)
    lengths = {len(requests) for requests in conversations.values()}
    if len(conversations) != count or len(lengths) != 1:
        raise PerfAnalyzerError(
            f"expected {count} sequences of equal length, got {len(conversations)} of {sorted(lengths)} requests"
        )
    latencies_s = [
        (_responded_ns(request) - requests[0]["timestamp"]) / 1e9 - tick * tick_ms / 1000
        for requests in conversations.values()
        for tick, request in enumerate(requests)
        if tick >= WARM_UP_TICKS
    ]
    return Row.of("perf_analyzer", count, tick_ms, latencies_s, paced=True)


def _run(command: Sequence[str], libraries: Path | None, folder: Path, profile: str, length_ms: float) -> Any:
    (folder / profile).unlink(missing_ok=True)
    inherited = os.environ.get("LD_LIBRARY_PATH", "")
    environment = {**os.environ, "LD_LIBRARY_PATH": f"{libraries}:{inherited}"} if libraries else dict(os.environ)
    try:
        result = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=length_ms / 1000 + GRACE_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise PerfAnalyzerError(
            f"perf_analyzer did not end within {error.timeout:g} s: check that Triton is running"
        ) from error
    if result.returncode != 0 or not (folder / profile).exists():
        output = (result.stdout + result.stderr)[-2000:]
        raise PerfAnalyzerError(f"perf_analyzer ended with {result.returncode}:\n{output}")
    return json.loads((folder / profile).read_text(encoding="utf-8"))["experiments"][0]


def _responded_ns(request: Mapping[str, Any]) -> int:
    """Return the time of a tick's only response in nanoseconds."""
    return int(request["response_timestamps"][0])


def _latency_ms(request: Mapping[str, Any]) -> float:
    return (_responded_ns(request) - int(request["timestamp"])) / 1e6
