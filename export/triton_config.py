"""Triton's model configs: those of model_repository/, completed from the checkpoint and the settings."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from google.protobuf import text_format
from transformers import AutoConfig
from tritonclient.grpc import model_config_pb2

from config import Settings
from export.stateful_module import StatefulModule, TensorSpec

TRITON_TYPES = {
    torch.int16: model_config_pb2.TYPE_INT16,
    torch.int64: model_config_pb2.TYPE_INT64,
    torch.float16: model_config_pb2.TYPE_FP16,
    torch.float32: model_config_pb2.TYPE_FP32,
}
MAX_BATCH = 128


def read_config(folder: Path) -> Any:
    """Return the ModelConfig message in `folder`/config.pbtxt."""
    return text_format.Parse((folder / "config.pbtxt").read_text(encoding="utf-8"), model_config_pb2.ModelConfig())


def write_config(folder: Path, config: Any) -> None:
    """Write the ModelConfig message to `folder`/config.pbtxt."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.pbtxt").write_text(text_format.MessageToString(config), encoding="utf-8")


def batch_size(settings: Settings) -> int:
    """Return the maximum number of ticks in a batch."""
    return min(settings.engine.slots or MAX_BATCH, MAX_BATCH)


def complete_batching(config: Any, settings: Settings) -> None:
    """Set the batch size and the idle timeout, equal in all stateful stages: each stage has a separate timeout."""
    config.max_batch_size = batch_size(settings)
    config.sequence_batching.max_sequence_idle_microseconds = int(settings.engine.idle_timeout_s * 1e6)


def tensors_of(stage: StatefulModule) -> dict[str, list[dict[str, Any]]]:
    """Return the inputs, states and outputs of a stage as JSON."""
    return {kind: [_tensor(spec) for spec in getattr(stage, kind)] for kind in ("inputs", "states", "outputs")}


def complete_stage(config: Any, tensors: Mapping[str, list[dict[str, Any]]], settings: Settings) -> None:
    """Write the tensors of a stage (from `tensors_of`) and its device into its config.

    There is no model_warmup: Triton runs it outside any sequence, where the native backend has no states and fails.
    """
    complete_batching(config, settings)
    config.input.extend(model_config_pb2.ModelInput(**tensor) for tensor in tensors["inputs"])
    config.output.extend(model_config_pb2.ModelOutput(**tensor) for tensor in tensors["outputs"])
    for tensor in tensors["states"]:
        name, kind_and_dims = tensor["name"], {key: tensor[key] for key in ("data_type", "dims")}
        state = config.sequence_batching.state.add(input_name=name, output_name="new_" + name, **kind_and_dims)
        state.initial_state.add(name=name, zero_data=True, **kind_and_dims)
    if "intra_op_thread_count" not in config.parameters:
        config.parameters["intra_op_thread_count"].string_value = str(settings.engine.cpu_threads)
    if runs_on_gpu(settings):
        # The GPU of the engine: without `gpus`, Triton creates an instance on every GPU of the machine.
        config.instance_group.add(
            kind=model_config_pb2.ModelInstanceGroup.KIND_GPU, count=1, gpus=[gpu_of(settings.qwen.device_map)]
        )
        # 1 is HEURISTIC. The backend's default measures every convolution again at each new batch size, during a tick.
        config.parameters["cudnn_conv_algo_search"].string_value = "1"
    else:
        config.instance_group.add(kind=model_config_pb2.ModelInstanceGroup.KIND_CPU, count=1)


def gpu_of(device_map: str) -> int:
    """Return the index of the GPU in `qwen.device_map`."""
    return int(device_map.partition(":")[2] or 0)


def checkpoint_voices(checkpoint: str) -> list[str]:
    """Return the names of a checkpoint's voices in small letters, in which clients choose them."""
    return [name.lower() for name in AutoConfig.from_pretrained(checkpoint).talker_config.speaker_id]


def complete_thinker_talker(config: Any, checkpoint: str, settings: Settings) -> None:
    """Write the dims of a tick, the settings, and the checkpoint's folder and voices into the config."""
    complete_batching(config, settings)
    config.sequence_batching.oldest.max_queue_delay_microseconds = settings.triton.queue_delay_us
    set_dims(config.input, "LOG_MEL", [128, settings.audio.mel_frames])
    set_dims(config.input, "AUDIO_IN", [settings.audio.input_samples])
    set_dims(config.output, "CODES", [16, settings.audio.codec_frames])
    config.parameters["settings"].string_value = settings.to_json()
    config.parameters["checkpoint"].string_value = checkpoint
    config.parameters["voices"].string_value = json.dumps(checkpoint_voices(checkpoint))


def complete_ensemble(config: Any, settings: Settings) -> None:
    """Write the dims of a tick into the config."""
    config.max_batch_size = batch_size(settings)
    set_dims(config.input, "AUDIO_IN", [settings.audio.input_samples])
    set_dims(config.output, "AUDIO_OUT", [settings.audio.output_samples])


def runs_on_gpu(settings: Settings) -> bool:
    """Return whether the two ONNX models run on a GPU: with `auto`, if the installed ONNX Runtime supports CUDA."""
    if settings.triton.instance == "auto":
        return "CUDAExecutionProvider" in onnxruntime.get_available_providers() and torch.cuda.is_available()
    return settings.triton.instance == "gpu"


def set_dims(tensors: Iterable[Any], name: str, dims: list[int]) -> None:
    """Replace the dims of the tensor `name`."""
    for tensor in tensors:
        if tensor.name == name:
            tensor.dims[:] = dims


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "data_type": TRITON_TYPES[spec.dtype], "dims": list(spec.dims)}
