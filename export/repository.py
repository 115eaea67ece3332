"""Assembly of the model repository that Triton serves, from a checkpoint and the settings, in a build folder.

Graphs are exported once (see `export.graphs`); the rest of the repository is written at each export.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, WhisperFeatureExtractor

from config import Settings
from config.settings import BARISTA, RANDOM
from engine.checkpoint import check_source, resolve_device, resolve_dtype
from engine.memory import expect_context, resolve_slots
from export import triton_config
from export.code2wav import Code2Wav
from export.code_predictor import export_code_predictor
from export.fetch import fetch_checkpoint
from export.graphs import ROOT, GraphStore
from export.mel_frontend import MelFrontend
from export.onnx_stage import export_onnx
from export.products import as_products
from export.random_checkpoint import make_random_checkpoint
from export.stateful_module import StatefulModule
from export.weights import CODE2WAV, PREDICTOR_PARTS, load_code2wav, load_predictor, weights_digest

SOURCES = ROOT / "model_repository"
STAMP = "built_from.json"
TENSORS = "tensors.json"  # file next to a stage's graph: its inputs, states and outputs
PREDICTOR = "code_predictor"
PRODUCTS = "_products"  # suffix of a graph whose convolutions are matrix products

# Maximum differences of an export from torch. 1e-3 in log10 is the rounding error of float32 in the weakest cells. At
# full size torch and ONNX Runtime are each within one step of PCM16 of float64, so within two of each other (at a peak
# of 22,000). float16 has 11 bits, through about 40 layers.
MEL_TOLERANCES = {"LOG_MEL": 1e-3}
CODE2WAV_TOLERANCES: dict[str, dict[str, float]] = {"float32": {"AUDIO_OUT": 2}, "float16": {"AUDIO_OUT": 3277}}

Report = Callable[[str], None]


def build_repository(settings: Settings, build: Path, report: Report, tensorrt: bool = False) -> Path:
    """Build `build`/repository, and return it.

    `report` is called with each step before the step begins; `tensorrt`: the graphs will become TensorRT engines.
    Raises `CheckpointError`, `ExportError`, `MemoryRefusedError` or `SettingsError`.
    """
    checkpoint = find_checkpoint(settings, build, report)
    settings = settle_slots(settings, checkpoint)
    graphs = GraphStore.of(settings.build, build, report)
    products = triton_config.runs_on_gpu(settings) and not tensorrt  # ONNX Runtime plans convolutions slowly on a GPU
    stages = {
        "mel_frontend": _mel_frontend(graphs, checkpoint, settings, products),
        "code2wav": _code2wav(graphs, checkpoint, settings, products),
    }
    predictor = _code_predictor(graphs, checkpoint, settings)

    report("the model repository")
    staging = build / "repository.new"
    shutil.rmtree(staging, ignore_errors=True)
    for name, folder in stages.items():
        config = triton_config.read_config(SOURCES / name)
        tensors = json.loads((folder / TENSORS).read_text(encoding="utf-8"))
        triton_config.complete_stage(config, tensors, settings)
        triton_config.write_config(staging / name, config)
        _link(folder, staging / name / "1", lambda file: file.name.startswith("model.onnx"))
    shutil.copytree(
        SOURCES / "thinker_talker" / "1", staging / "thinker_talker" / "1", ignore=shutil.ignore_patterns("__pycache__")
    )
    if predictor:
        _link(predictor, staging / "thinker_talker" / PREDICTOR)
    config = triton_config.read_config(SOURCES / "thinker_talker")
    triton_config.complete_thinker_talker(config, checkpoint, settings)
    triton_config.write_config(staging / "thinker_talker", config)
    config = triton_config.read_config(SOURCES / "duplex")
    triton_config.complete_ensemble(config, settings)
    triton_config.write_config(staging / "duplex", config)
    (staging / "duplex" / "1").mkdir()
    stamp = {
        "graphs": {name: folder.name for name, folder in stages.items()},
        "onnx_precision": settings.triton.onnx_precision,
        "max_batch_size": triton_config.batch_size(settings),
    }
    (staging / STAMP).write_text(json.dumps(stamp, indent=2), encoding="utf-8")
    repository = build / "repository"
    shutil.rmtree(repository, ignore_errors=True)
    staging.rename(repository)
    return repository


def settle_slots(settings: Settings, checkpoint: str) -> Settings:
    """Return settings with a resolved `engine.slots`; on CUDA 0 stays 0, because the engine measures the memory.

    Raises `MemoryRefusedError` if no slot fits, `SettingsError` for a context that is longer than the checkpoint's.
    """
    device = resolve_device(settings.qwen.device_map)
    dtype = resolve_dtype(settings.qwen.torch_dtype, device)
    config = AutoConfig.from_pretrained(checkpoint)
    expect_context(config, settings)
    resolved = resolve_slots(config, settings, torch.device(device), dtype)
    return settings if device.startswith("cuda") else resolved


def find_checkpoint(settings: Settings, build: Path, report: Report) -> str:
    """Return the folder of the checkpoint in `qwen.model_id`; by default the barista's.

    For `random` the checkpoint of random weights is created if need be. Raises `CheckpointError` for files of the
    checkpoint or of its adapter that cannot be served.
    """
    source = settings.qwen.model_id
    if source == RANDOM:
        folder = _random_checkpoint(settings, build, report)
    elif not source:
        folder = BARISTA
    else:
        folder = Path(source) if Path(source).exists() else fetch_checkpoint(source, report)
    return str(check_source(folder, settings.qwen.lora).resolve())


def _random_checkpoint(settings: Settings, build: Path, report: Report) -> Path:
    """Return the checkpoint of random weights, which lies next to the graphs if build folders share them."""
    graphs = GraphStore.of(settings.build, build, report)
    folder = (graphs.folder if settings.build.graphs else build) / "random_checkpoint"
    code = [ROOT / "export" / f"{name}.py" for name in ("random_checkpoint", "byte_tokenizer", "chat_format")]
    stamp = {"made by": hashlib.sha256(b"".join(file.read_bytes() for file in code)).hexdigest()}
    with graphs.locked("random_checkpoint"):
        if read_stamp(folder) != stamp:
            report("the random checkpoint: Qwen3-Omni's architecture, random weights")
            shutil.rmtree(folder, ignore_errors=True)
            make_random_checkpoint(folder)
            (folder / STAMP).write_text(json.dumps(stamp), encoding="utf-8")
    return folder


def read_stamp(folder: Path) -> Any:
    """Return the stamp of `folder`, which names what it was built from; None if there is none."""
    try:
        return json.loads((folder / STAMP).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def _mel_frontend(graphs: GraphStore, checkpoint: str, settings: Settings, products: bool) -> Path:
    extractor = WhisperFeatureExtractor.from_pretrained(checkpoint)

    def make(folder: Path) -> str:
        plain, served = (MelFrontend(extractor, settings.audio.input_samples, each) for each in (False, products))
        return _export_stage(served, folder, MEL_TOLERANCES, plain)

    follows_from = {"extractor": extractor.to_dict(), "samples": settings.audio.input_samples, "products": products}
    name = "mel_frontend" + PRODUCTS * products
    return graphs.get(name, "PCM16 to log-mel, to ONNX", ["export/mel_frontend.py"], follows_from, make)


def _code2wav(graphs: GraphStore, checkpoint: str, settings: Settings, products: bool) -> Path:
    precision, frames = settings.triton.onnx_precision, settings.audio.codec_frames

    def make(folder: Path) -> str:
        code2wav = load_code2wav(checkpoint, getattr(torch, precision))
        plain = Code2Wav(code2wav, frames)
        served = Code2Wav(as_products(deepcopy(code2wav)), frames) if products else plain
        return _export_stage(served, folder, CODE2WAV_TOLERANCES[precision], plain)

    weights = weights_digest(checkpoint, CODE2WAV)
    follows_from = {"weights": weights, "precision": precision, "frames": frames, "products": products}
    code = ["export/code2wav.py", "export/products.py", "export/weights.py"]
    name = "code2wav" + PRODUCTS * products
    return graphs.get(name, f"codec frames to waveform, to ONNX in {precision}", code, follows_from, make)


def _code_predictor(graphs: GraphStore, checkpoint: str, settings: Settings) -> Path | None:
    """Return the graphs of the code predictor for a CPU; None on CUDA, in another type than float32, or with a LoRA."""
    device = resolve_device(settings.qwen.device_map)
    is_float32 = resolve_dtype(settings.qwen.torch_dtype, device) == torch.float32
    if device != "cpu" or not is_float32 or settings.qwen.lora:
        return None

    def make(folder: Path) -> str:
        return (
            f"embeddings differ from torch by {export_code_predictor(load_predictor(checkpoint), folder):.1e} at most"
        )

    code = ["export/code_predictor.py", "export/weights.py"]
    code += [f"engine/{name}.py" for name in ("code_predictor", "onnx_builder", "sampler")]
    follows_from = {"weights": weights_digest(checkpoint, *PREDICTOR_PARTS)}
    return graphs.get(PREDICTOR, "the talker's loop over codebooks, to ONNX", code, follows_from, make)


def _export_stage(stage: StatefulModule, folder: Path, tolerances: dict[str, float], reference: StatefulModule) -> str:
    differences = export_onnx(stage, folder / "model.onnx", tolerances, reference)
    (folder / TENSORS).write_text(json.dumps(triton_config.tensors_of(stage)), encoding="utf-8")
    return ", ".join(f"{name} differs from torch by {value:.1e} at most" for name, value in differences.items())


def _link(source: Path, target: Path, is_linked: Callable[[Path], bool] = lambda _: True) -> None:
    """Link the files of `source` in `target`; copy them if the file system has no hard links."""
    target.mkdir(parents=True)
    for file in filter(is_linked, source.iterdir()):
        try:
            os.link(file, target / file.name)
        except OSError:
            shutil.copy2(file, target / file.name)
