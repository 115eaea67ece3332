"""A checkpoint and the settings -> a model repository that Triton serves, in a build folder.

Both are hashed: what was built from the same things is not built again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, WhisperFeatureExtractor
from transformers.utils import cached_file

from config import Settings
from engine.checkpoint import check_model_type, resolve_device, resolve_dtype
from engine.memory import expect_context, resolve_slots
from export import triton_config
from export.code2wav import Code2Wav
from export.mel_frontend import MelFrontend
from export.onnx_stage import export_onnx
from export.stage import Stage
from export.tiny import make_tiny_checkpoint
from export.weights import load_code2wav

ROOT = Path(__file__).parent.parent
SOURCES = ROOT / "model_repository"
STAMP = "built_from.json"
BUILT_INTO_STAGES = ("instance", "onnx_precision", "queue_delay_us")  # of [triton]; its ports are the server's alone

# Greatest differences from torch that an export may show, each with its reason: mel frames are compared to the
# extractor within 1e-4; 3e-5 of full scale is one step of PCM16; float16 has 11 bits, through some 40 layers.
MEL_TOLERANCES = {"LOG_MEL": 1e-4}
CODE2WAV_TOLERANCES = {"float32": {"AUDIO_OUT": 1, "WAVEFORM": 3e-5}, "float16": {"AUDIO_OUT": 3277, "WAVEFORM": 0.1}}

Report = Callable[[str], None]


def build_repository(settings: Settings, build: Path, report: Report) -> Path:
    """Makes `build`/repository, or finds it made; returns it.

    `report` is told each step before it begins. Raises `CheckpointError`, `ExportError`,
    `MemoryRefusedError` or `SettingsError`.
    """
    checkpoint = find_checkpoint(settings, build, report)
    settings = settle_slots(settings, checkpoint)
    repository = build / "repository"
    stamp = _stamp(checkpoint, settings)
    if read_stamp(repository) == stamp:
        report(f"the repository in {repository} is up to date")
        return repository

    staging = build / "repository.new"
    shutil.rmtree(staging, ignore_errors=True)
    report("mel_frontend: PCM16 to log-mel, to ONNX")
    extractor = WhisperFeatureExtractor.from_pretrained(checkpoint)
    mel_frontend = MelFrontend(extractor, settings.audio.input_samples)
    _build_stage("mel_frontend", mel_frontend, MEL_TOLERANCES, staging, settings, report)

    precision = settings.triton.onnx_precision
    report(f"code2wav: codec frames to waveform, to ONNX in {precision}")
    code2wav = Code2Wav(load_code2wav(checkpoint, getattr(torch, precision)), settings.audio.codec_frames)
    _build_stage("code2wav", code2wav, CODE2WAV_TOLERANCES[precision], staging, settings, report)

    report("thinker_talker and duplex: their configs")
    shutil.copytree(
        SOURCES / "thinker_talker" / "1", staging / "thinker_talker" / "1", ignore=shutil.ignore_patterns("__pycache__")
    )
    config = triton_config.read_config(SOURCES / "thinker_talker")
    triton_config.complete_thinker_talker(config, checkpoint, settings)
    triton_config.write_config(staging / "thinker_talker", config)
    config = triton_config.read_config(SOURCES / "duplex")
    triton_config.complete_ensemble(config, settings)
    triton_config.write_config(staging / "duplex", config)
    (staging / "duplex" / "1").mkdir()

    (staging / STAMP).write_text(json.dumps(stamp, indent=2), encoding="utf-8")
    shutil.rmtree(repository, ignore_errors=True)
    staging.rename(repository)
    return repository


def settle_slots(settings: Settings, checkpoint: str) -> Settings:
    """Settings whose `engine.slots` is a number of conversations.

    Raises `MemoryRefusedError` when none fits, `SettingsError` for a context that the checkpoint does not know.
    """
    device = resolve_device(settings.qwen.device_map)
    dtype = resolve_dtype(settings.qwen.torch_dtype, device)
    config = AutoConfig.from_pretrained(checkpoint)
    expect_context(config, settings)
    return resolve_slots(config, settings, torch.device(device), dtype)


def find_checkpoint(settings: Settings, build: Path, report: Report) -> str:
    """The checkpoint that `qwen.model_id` names; the tiny one, made if need be, when it names none."""
    source = settings.qwen.model_id
    if source:
        check_model_type(source)
        return str(Path(source).resolve()) if Path(source).exists() else source
    folder = build / "tiny_checkpoint"
    stamp = {"made by": _digest([ROOT / "export" / "tiny.py", ROOT / "export" / "tiny_tokenizer.py"])}
    if read_stamp(folder) != stamp:
        report("the tiny checkpoint: Qwen3-Omni's architecture, random weights")
        shutil.rmtree(folder, ignore_errors=True)
        make_tiny_checkpoint(folder)
        (folder / STAMP).write_text(json.dumps(stamp), encoding="utf-8")
    return str(folder.resolve())


def _build_stage(
    name: str, stage: Stage, tolerances: dict[str, float], staging: Path, settings: Settings, report: Report
) -> None:
    config = triton_config.read_config(SOURCES / name)
    triton_config.complete_stage(config, stage, settings)
    triton_config.write_config(staging / name, config)
    differences = export_onnx(stage, staging / name / "1" / "model.onnx", tolerances)
    output = next(reversed(tolerances))  # the one in floating point
    report(f"{name}: checked, ONNX differs from torch by {differences[output]:.1e} of {output} at most")


def _stamp(checkpoint: str, settings: Settings) -> dict[str, Any]:
    """All that a repository follows from."""
    code = [ROOT / "requirements.lock", *SOURCES.rglob("*.pbtxt"), *SOURCES.rglob("*.py")]
    code += [file for folder in ("export", "config") for file in (ROOT / folder).glob("*.py")]
    relevant = json.loads(settings.to_json())
    del relevant["bridge"]
    relevant["triton"] = {key: relevant["triton"][key] for key in BUILT_INTO_STAGES}
    weights = sorted(Path(checkpoint).glob("*")) if Path(checkpoint).is_dir() else []
    return {
        "code": _digest(sorted(code)),
        "settings": relevant,
        "checkpoint": checkpoint,
        "revision": cached_file(checkpoint, "config.json"),  # of a hub name, its place tells the commit
        "checkpoint_files": [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in weights],
        "gpu": triton_config.runs_on_gpu(settings),
    }


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def read_stamp(folder: Path) -> Any:
    """What `folder` was built from; None where nothing is."""
    try:
        return json.loads((folder / STAMP).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
