"""Conversion of the two ONNX stages for TensorRT: graphs, configs, and the script that builds the engines.

TensorRT does not support INT16, so audio enters and leaves the engines as INT32, and two stages of a single Cast keep
the tensors of the ensemble. TensorRT 11 computes in the types of the graph, so the graph has to be in mixed precision:
ModelOpt's AutoCast converts code2wav's convolutions and matrix products to float16 if their values fit, and leaves the
rest, above all the states, in float32. mel_frontend stays in float32: the tolerance of its log-mel is 1e-4.

The script in the repository's folder builds the engines, in a container with TensorRT.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
from modelopt.onnx.autocast import convert_to_mixed_precision
from modelopt.onnx.logging_config import configure_logging
from onnx import TensorProto, helper
from polygraphy.comparator import IterationResult, RunResults
from polygraphy.json import save_json
from polygraphy.logger import G_LOGGER
from tritonclient.grpc import model_config_pb2

from export import triton_config
from export.onnx_stage import OPSET, ExportError
from export.repository import read_stamp
from export.tensorrt_script import ENGINE, SCRIPT_HEAD, engine_commands

STAGES = ("mel_frontend", "code2wav")
HALF_PRECISION = ("code2wav",)
IN_HALF = {"Conv", "ConvTranspose", "MatMul"}  # operations of the matrix units; all others stay in float32
CALIBRATION_TICKS = 4
SCRIPT = "build_engines.sh"

Feed = dict[str, np.ndarray]
Report = Callable[[str], None]


def build_tensorrt_repository(repository: Path, report: Report) -> Path:
    """Convert `repository` (see `export.repository`) to `repository`_tensorrt, and return the new folder.

    Its engines are missing until its script has run. Raises `ExportError` for a repository in float16.
    """
    made = repository.with_name(repository.name + "_tensorrt")
    stamp = read_stamp(repository)
    if stamp["onnx_precision"] != "float32":
        raise ExportError(
            "triton.onnx_precision is float16, expected float32 for TensorRT: AutoCast chooses the precision"
        )
    if read_stamp(made) == stamp:
        report(f"the graphs in {made} are up to date")
        shutil.rmtree(made / "thinker_talker")  # the config holds the settings, which may have changed
        shutil.copytree(repository / "thinker_talker", made / "thinker_talker")
        return made
    staging = made.with_name(made.name + ".new")
    shutil.rmtree(staging, ignore_errors=True)
    shutil.copytree(repository, staging, ignore=shutil.ignore_patterns("__pycache__"))
    commands = []
    for name in STAGES:
        report(f"{name}: INT32 in place of INT16" + (", AutoCast to float16" if name in HALF_PRECISION else ""))
        folder = staging / name
        original = folder / "1" / "model.onnx"
        ticks = record(original, batch=1)
        without_int16(original, original)
        if name in HALF_PRECISION:
            mix_precision(original, [tick.feed for tick in ticks])
        original.rename(folder / "model.onnx")  # version 1 holds only the engine
        for data in original.parent.glob("*.data"):
            data.rename(folder / data.name)
        config = triton_config.read_config(folder)
        use_tensorrt(config)
        triton_config.write_config(folder, config)
        save_comparison(ticks, folder)
        commands.append(engine_commands(config))
    report("the casts and the ensemble")
    ensemble = triton_config.read_config(staging / "duplex")
    add_cast(staging, "pcm_in", TensorProto.INT16, TensorProto.INT32, ensemble.input[0], ensemble.max_batch_size)
    add_cast(staging, "pcm_out", TensorProto.INT32, TensorProto.INT16, ensemble.output[0], ensemble.max_batch_size)
    add_casting_steps(ensemble)
    triton_config.write_config(staging / "duplex", ensemble)
    script = staging / SCRIPT
    script.write_text(SCRIPT_HEAD + "\n".join(commands), encoding="utf-8")
    script.chmod(0o755)
    shutil.rmtree(made, ignore_errors=True)
    staging.rename(made)
    return made


def build_engines(repository: Path, report: Report) -> None:
    """Run the script unless the engines exist; raise `ExportError` if TensorRT is missing or the script fails."""
    if all((repository / name / "1" / ENGINE).is_file() for name in STAGES):
        report("the engines exist")
        return
    if not shutil.which("trtexec"):
        raise ExportError(
            f"trtexec is not on PATH, so the TensorRT engines are not built: run {repository / SCRIPT} where TensorRT "
            "is installed (its first lines show how), then this command again"
        )
    report("building the engines: some minutes")
    built = subprocess.run(
        [repository / SCRIPT], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    (repository / "build_engines.log").write_text(built.stdout, encoding="utf-8")
    if built.returncode != 0:
        raise ExportError(f"{SCRIPT} ended with {built.returncode}:\n{built.stdout[-2000:]}")


def without_int16(source: Path, target: Path) -> None:
    """Copy the graph `source` to `target` with INT32 for INT16, which TensorRT does not support."""
    model = onnx.load(source)
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        if value.type.tensor_type.elem_type == TensorProto.INT16:
            value.type.tensor_type.elem_type = TensorProto.INT32
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.INT16:
                attribute.i = TensorProto.INT32
    _save(model, target)


def mix_precision(path: Path, feeds: list[Feed]) -> None:
    """Rewrite the graph in mixed precision; with `feeds`, AutoCast finds the values too large for float16."""
    configure_logging("ERROR")  # below errors, AutoCast logs a line a node
    calibration = path.with_name("calibration")
    calibration.mkdir()
    for tick, feed in enumerate(feeds):
        np.savez(calibration / f"{tick}.npz", **feed)
    others = sorted({node.op_type for node in onnx.load(path, load_external_data=False).graph.node} - IN_HALF)
    mixed = convert_to_mixed_precision(
        onnx_path=str(path),
        low_precision_type="fp16",
        keep_io_types=True,
        op_types_to_exclude=others,
        calibration_data=str(calibration),
    )
    _save(mixed, path)
    shutil.rmtree(calibration)


class Recorded(NamedTuple):
    """Inputs and outputs of a float32 graph in one tick of a stream."""

    feed: Feed
    outputs: Feed


def record(graph: Path, batch: int) -> list[Recorded]:
    """Run `CALIBRATION_TICKS` of a stream, as loud as speech, through ONNX Runtime; INT32 replaces INT16."""
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    random = np.random.RandomState(0)
    states = {name: np.zeros(shape, kind) for name, shape, kind in _tensors(session, batch) if name.islower()}
    names = [output.name for output in session.get_outputs()]
    ticks = []
    for _ in range(CALIBRATION_TICKS):
        inputs = {
            name: _random_input(random, name, shape, kind)
            for name, shape, kind in _tensors(session, batch)
            if name.isupper()
        }
        feed = {**inputs, **states}
        found = dict(zip(names, session.run(names, feed), strict=True))
        states = {name: found[f"new_{name}"] for name in states}
        feed, found = ({name: _int32(value) for name, value in tensors.items()} for tensors in (feed, found))
        ticks.append(Recorded(feed, found))
    return ticks


def save_comparison(ticks: list[Recorded], folder: Path) -> None:
    """Write the inputs for Polygraphy, and the outputs of ONNX Runtime with the float32 graph."""
    results = [IterationResult(outputs=tick.outputs, runner_name="float32") for tick in ticks]
    with G_LOGGER.verbosity(G_LOGGER.WARNING):
        save_json([tick.feed for tick in ticks], str(folder / "inputs.json"), description="ticks of a stream")
        RunResults([("float32", results)]).save(str(folder / "expected.json"))


def use_tensorrt(config: Any) -> None:
    """Change a stage's config from ONNX Runtime to TensorRT; its states stay the same."""
    config.backend = "tensorrt"
    config.default_model_filename = ENGINE
    config.parameters.clear()
    for tensor in (*config.input, *config.output):
        if tensor.data_type == model_config_pb2.TYPE_INT16:
            tensor.data_type = model_config_pb2.TYPE_INT32
    del config.instance_group[:]
    config.instance_group.add(kind=model_config_pb2.ModelInstanceGroup.KIND_GPU, count=1, profile=["0"])


def add_cast(repository: Path, name: str, source: int, target: int, sound: Any, batch: int) -> None:
    """Add a stage for ONNX Runtime that casts the ensemble's tensor `sound`."""
    samples = sound.dims[0]
    before = helper.make_tensor_value_info("IN", source, ["batch", samples])
    after = helper.make_tensor_value_info("OUT", target, ["batch", samples])
    graph = helper.make_graph([helper.make_node("Cast", ["IN"], ["OUT"], to=target)], name, [before], [after])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    (repository / name / "1").mkdir(parents=True)
    onnx.save(model, repository / name / "1" / "model.onnx")
    types = {TensorProto.INT16: model_config_pb2.TYPE_INT16, TensorProto.INT32: model_config_pb2.TYPE_INT32}
    config = model_config_pb2.ModelConfig(name=name, backend="onnxruntime")
    config.max_batch_size = batch
    config.input.add(name="IN", data_type=types[source], dims=[samples])
    config.output.add(name="OUT", data_type=types[target], dims=[samples])
    config.instance_group.add(kind=model_config_pb2.ModelInstanceGroup.KIND_CPU, count=1)
    triton_config.write_config(repository / name, config)


def add_casting_steps(ensemble: Any) -> None:
    """Insert `pcm_in` before mel_frontend and `pcm_out` after code2wav; the ensemble's own tensors stay INT16."""
    mel, _, code2wav = ensemble.ensemble_scheduling.step
    mel.input_map["AUDIO_IN"] = "audio_in_int32"
    code2wav.output_map["AUDIO_OUT"] = "audio_out_int32"
    add = ensemble.ensemble_scheduling.step.add
    add(model_name="pcm_in", model_version=-1, input_map={"IN": "AUDIO_IN"}, output_map={"OUT": "audio_in_int32"})
    add(model_name="pcm_out", model_version=-1, input_map={"IN": "audio_out_int32"}, output_map={"OUT": "AUDIO_OUT"})


def _tensors(session: Any, batch: int) -> list[tuple[str, list[int], Any]]:
    kinds: Mapping[str, Any] = {
        "tensor(int16)": np.int16,
        "tensor(int32)": np.int32,
        "tensor(int64)": np.int64,
        "tensor(float)": np.float32,
        "tensor(float16)": np.float16,
    }
    return [(tensor.name, [batch, *tensor.shape[1:]], kinds[tensor.type]) for tensor in session.get_inputs()]


def _random_input(random: np.random.RandomState, name: str, shape: list[int], kind: Any) -> np.ndarray:
    """Draw audio as loud as speech, codes below 512 (the smallest codebook in use), or a BEGIN of 0."""
    low, high = {"AUDIO_IN": (-8000, 8000), "CODES": (0, 512), "BEGIN": (0, 1)}[name]
    return random.randint(low, high, shape).astype(kind)


def _int32(value: np.ndarray) -> np.ndarray:
    return value.astype(np.int32) if value.dtype == np.int16 else value


def _save(model: Any, path: Path) -> None:
    """Write a graph; weights that are too large for a protobuf go to a separate file."""
    data = path.with_name(path.name + ".data")
    data.unlink(missing_ok=True)
    large = model.ByteSize() > 1_500_000_000
    onnx.save(model, path, save_as_external_data=large, location=data.name if large else None)
