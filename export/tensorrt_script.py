"""The script that builds TensorRT engines, and compares them to ONNX Runtime with Polygraphy."""

from __future__ import annotations

import shlex
from typing import Any

ENGINE = "model.plan"
# Maximum differences from the float32 graph. mel_frontend: the tolerance against the extractor. code2wav: with float16
# products the random checkpoint's waveform differs by 0.012, and its convolution tails, of up to 17, by 0.56; the
# tolerances are three times these values. The frame count is exact.
TOLERANCES = {
    "mel_frontend": {"LOG_MEL": 1e-4, "new_past": 1e-4},
    "code2wav": {"AUDIO_OUT": 1200, "new_conv": 1.7, "new_frames": 0, "new_kv": 0.005},
}
SCRIPT_HEAD = """#!/usr/bin/env bash
# Builds the TensorRT engines of this repository and compares each to ONNX Runtime. Run this on the GPU model and with
# the TensorRT release (that of the same container release) that will serve the engines, for example
#   docker run --gpus all --rm -v "$PWD:/repository" nvcr.io/nvidia/tensorrt:26.07-py3 /repository/build_engines.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
for tool in trtexec polygraphy; do
    command -v "$tool" > /dev/null && continue
    echo "$tool is not on PATH: run this in NVIDIA's TensorRT container" >&2
    exit 1
done

"""


def engine_commands(config: Any) -> str:
    """Return the shell lines that build a stage's engine and compare it to the outputs of ONNX Runtime."""
    states = config.sequence_batching.state
    tensors = {tensor.name: list(tensor.dims) for tensor in config.input}
    tensors |= {state.input_name: list(state.dims) for state in states}
    max_batch = config.max_batch_size
    shapes = {
        f"--{kind}Shapes": ",".join(f"{name}:{'x'.join(map(str, [batch, *dims]))}" for name, dims in tensors.items())
        for kind, batch in (("min", 1), ("opt", min(8, max_batch)), ("max", max_batch))
    }
    build = [
        "trtexec",
        f"--onnx={config.name}/model.onnx",
        f"--saveEngine={config.name}/1/{ENGINE}",
        "--stronglyTyped",  # the only mode of TensorRT 11; TensorRT 10 needs the flag
        "--noTF32",  # float32 means float32
        *(f"{flag}={value}" for flag, value in shapes.items()),
        "--memPoolSize=workspace:4096",
        f"--timingCacheFile={config.name}/timing.cache",
        "--skipInference",
    ]
    compare = ["polygraphy", "run", f"{config.name}/1/{ENGINE}", "--trt", *comparison_arguments(config.name)]
    return "\n".join([shlex.join(build), shlex.join(compare), ""])


def comparison_arguments(name: str) -> list[str]:
    """Return Polygraphy's arguments for any runner: recorded inputs and outputs, and the tolerance of each output."""
    return [
        *("--load-inputs", f"{name}/inputs.json", "--load-outputs", f"{name}/expected.json"),
        *("--check-error-stat", "max", "--rtol", "0", "--validate", "--atol"),
        *(f"{output}:{tolerance:g}" for output, tolerance in TOLERANCES[name].items()),
    ]
