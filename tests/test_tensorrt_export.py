"""The graphs and scripts from which TensorRT builds engines, tested without TensorRT."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import tritonclient.grpc as triton
from onnx import TensorProto
from tritonclient.grpc import model_config_pb2

from export import triton_config
from export.onnx_stage import ExportError
from export.repository import STAMP, build_repository
from export.tensorrt import STAGES, build_engines, build_tensorrt_repository, record
from export.tensorrt_script import TOLERANCES, comparison_arguments
from launch.triton_server import TritonServer
from tests.conftest import BUILD, free_port

SOUND = {"mel_frontend": "AUDIO_IN", "code2wav": "AUDIO_OUT"}


@pytest.fixture(scope="module")
def plain(settings) -> Path:
    """Build the repository for ONNX Runtime."""
    return build_repository(settings.with_values(engine={"slots": 12}), BUILD / "tensorrt", print)


@pytest.fixture(scope="module")
def made(plain: Path) -> Path:
    """Build the repository for TensorRT, without engines."""
    return build_tensorrt_repository(plain, print)


@pytest.fixture(params=STAGES)
def stage(request) -> str:
    return request.param


def graph(folder: Path, stage: str) -> onnx.ModelProto:
    return onnx.load(folder / stage / "model.onnx")


def test_graphs_use_only_types_that_tensorrt_supports(made: Path, stage):
    model = onnx.shape_inference.infer_shapes(graph(made, stage), strict_mode=True)
    supported = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL}
    values = [*model.graph.input, *model.graph.output, *model.graph.value_info]
    assert {value.type.tensor_type.elem_type for value in values} <= supported
    assert {tensor.data_type for tensor in model.graph.initializer} <= supported
    casts = [node.attribute[0].i for node in model.graph.node if node.op_type == "Cast"]
    assert set(casts) <= supported
    assert [(opset.domain, opset.version) for opset in model.opset_import if opset.domain == ""] == [("", 18)]


def test_only_products_are_in_float16_and_states_are_in_float32(made: Path, plain: Path):
    model = onnx.shape_inference.infer_shapes(graph(made, "code2wav"))
    kinds = {v.name: v.type.tensor_type.elem_type for v in (*model.graph.value_info, *model.graph.output)}
    kinds |= {v.name: v.type.tensor_type.elem_type for v in model.graph.input}
    half = {node.op_type for node in model.graph.node if any(kinds.get(o) == TensorProto.FLOAT16 for o in node.output)}
    assert {"Conv", "ConvTranspose", "MatMul"} <= half <= {"Conv", "ConvTranspose", "MatMul", "Cast"}
    session = onnxruntime.InferenceSession(made / "code2wav" / "model.onnx")
    feed = record(plain / "code2wav" / "1" / "model.onnx", batch=1)[-1].feed
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, session.run(names, feed), strict=True))
    for name in ("new_conv", "new_kv"):
        assert not np.array_equal(found[name], found[name].astype(np.float16).astype(np.float32)), name
    assert "float16" not in str({i.type for i in session.get_inputs()})


@pytest.mark.parametrize("batch", [1, 3])
def test_tensorrt_graphs_equal_the_graphs_of_onnx_runtime(made: Path, plain: Path, stage, batch):
    for_tensorrt = onnxruntime.InferenceSession(made / stage / "model.onnx")
    for_onnx_runtime = onnxruntime.InferenceSession(plain / stage / "1" / "model.onnx")
    names = [output.name for output in for_tensorrt.get_outputs()]
    assert set(TOLERANCES[stage]) == set(names)
    for feed, _ in record(plain / stage / "1" / "model.onnx", batch):
        as_pcm = {name: value.astype(np.int16) if name == "AUDIO_IN" else value for name, value in feed.items()}
        outputs = for_tensorrt.run(names, feed), for_onnx_runtime.run(names, as_pcm)
        for name, found, expected in zip(names, *outputs, strict=True):
            difference = np.abs(found.astype(np.float64) - expected.astype(np.float64)).max()
            assert difference <= TOLERANCES[stage][name], name
            if stage == "mel_frontend":
                assert difference == 0, "expected no difference in float32"


def test_polygraphy_passes_equal_graphs_and_fails_different_ones(made: Path, stage):
    """The comparison of the script, with ONNX Runtime in place of TensorRT."""
    compare = [Path(sys.executable).parent / "polygraphy", "run", f"{stage}/model.onnx", "--onnxrt"]
    run = subprocess.run([*compare, *comparison_arguments(stage)], cwd=made, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:]
    assert "Pass Rate: 100.00%" in run.stdout
    wrong = [argument.replace(stage, "code2wav" if stage == "mel_frontend" else "mel_frontend") for argument in
             comparison_arguments(stage)]  # fmt: skip
    assert subprocess.run([*compare, *wrong], cwd=made, capture_output=True).returncode != 0


def test_configs_have_the_same_states_and_name_the_engine(made: Path, plain: Path, stage):
    config, before = (triton_config.read_config(folder / stage) for folder in (made, plain))
    assert (config.backend, config.default_model_filename) == ("tensorrt", "model.plan")
    assert config.sequence_batching == before.sequence_batching
    assert [(group.kind, list(group.profile)) for group in config.instance_group] == [
        (model_config_pb2.ModelInstanceGroup.KIND_GPU, ["0"])
    ]
    named = {tensor.name for tensor in (*config.input, *config.output)}
    named |= {name for state in config.sequence_batching.state for name in (state.input_name, state.output_name)}
    model = graph(made, stage)
    in_graph = {value.name: value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)}
    assert named == set(in_graph), "the backend requires every tensor of an engine in its config"
    assert in_graph[SOUND[stage]] == TensorProto.INT32
    types = {tensor.name: tensor.data_type for tensor in (*config.input, *config.output)}
    assert types[SOUND[stage]] == model_config_pb2.TYPE_INT32
    assert not list((made / stage / "1").iterdir()), "expected no engine yet"


def test_script_passes_the_shape_of_every_input(made: Path, stage):
    script = (made / "build_engines.sh").read_text()
    build = next(shlex.split(line) for line in script.splitlines() if line.startswith(f"trtexec --onnx={stage}/"))
    flags = dict(argument.lstrip("-").partition("=")[::2] for argument in build[1:])
    model = graph(made, stage)
    for kind, batch in (("min", 1), ("opt", 8), ("max", 12)):
        shapes = dict(shape.split(":") for shape in flags[f"{kind}Shapes"].split(","))
        expected = {
            value.name: "x".join(str(d.dim_value or batch) for d in value.type.tensor_type.shape.dim)
            for value in model.graph.input
        }
        assert shapes == expected
    assert flags["saveEngine"] == f"{stage}/1/model.plan"
    assert not {"fp16", "int8", "best", "inputIOFormats"} & set(flags), "TensorRT 11 removed these flags"
    assert subprocess.run(["bash", "-n", made / "build_engines.sh"]).returncode == 0


def test_script_runs_its_tools_in_order(made: Path, tmp_path, monkeypatch):
    """Stand-ins for the two programs of TensorRT record their arguments."""
    for tool in ("trtexec", "polygraphy"):
        program = tmp_path / tool
        program.write_text(f'#!/bin/sh\necho {tool} "$@" >> "$CALLS"\n')
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    build_engines(made, print)
    calls = [line.split()[:3] for line in (tmp_path / "calls").read_text().splitlines()]
    assert [call[0] for call in calls] == ["trtexec", "polygraphy"] * 2
    assert calls[3][1:] == ["run", "code2wav/1/model.plan"]


def test_second_build_leaves_engines_unchanged(made: Path, plain: Path, settings, tmp_path):
    engine = made / "mel_frontend" / "1" / "model.plan"
    engine.write_bytes(b"an engine")
    try:
        assert build_tensorrt_repository(plain, print) == made
        assert engine.read_bytes() == b"an engine"
    finally:
        engine.unlink()
    half = tmp_path / "repository"
    half.mkdir()
    stamp = json.loads((plain / STAMP).read_text())
    stamp["onnx_precision"] = "float16"
    (half / STAMP).write_text(json.dumps(stamp))
    with pytest.raises(ExportError, match="onnx_precision is float16, expected float32"):
        build_tensorrt_repository(half, print)


def test_error_without_tensorrt_names_the_script_to_run(made: Path, monkeypatch):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    with pytest.raises(ExportError, match=r"trtexec is not on PATH.*: run .*build_engines.sh where TensorRT is"):
        build_engines(made, print)
    run = subprocess.run([made / "build_engines.sh"], capture_output=True, text=True)
    assert run.returncode == 1
    assert "trtexec is not on PATH" in run.stderr


@pytest.fixture(scope="module")
def served_by_onnxruntime(made: Path, settings, tmp_path_factory) -> Iterator[str]:
    """Serve the repository for TensorRT on the real Triton, with ONNX Runtime for the engines; yield the address."""
    repository = tmp_path_factory.mktemp("tensorrt") / "repository"
    shutil.copytree(made, repository)
    for stage in STAGES:
        config = triton_config.read_config(repository / stage)
        config.backend = "onnxruntime"
        config.default_model_filename = ""
        config.instance_group[0].kind = model_config_pb2.ModelInstanceGroup.KIND_CPU
        del config.instance_group[0].profile[:]
        triton_config.write_config(repository / stage, config)
        (repository / stage / "model.onnx").rename(repository / stage / "1" / "model.onnx")
    ports = {f"{name}_port": free_port() for name in ("http", "grpc", "metrics")}
    changed = settings.with_values(triton=ports)
    log = repository.parent / "log"
    with TritonServer(repository, repository.parent / "runtime", changed, log) as server:
        server.wait_until_ready()
        yield f"127.0.0.1:{ports['grpc_port']}"


def test_ensemble_with_casts_fulfils_the_contract(served_by_onnxruntime: str, served, pcm):
    """Input and output are INT16; the sound differs from the plain repository only by products in float16."""
    sounds = []
    for url in (served_by_onnxruntime, served.triton_grpc):
        client, sound = triton.InferenceServerClient(url), []
        for tick in range(6):
            audio = triton.InferInput("AUDIO_IN", [1, 5120], "INT16")
            audio.set_data_from_numpy(pcm[None, tick * 5120 : (tick + 1) * 5120])
            output = client.infer("duplex", [audio], sequence_id=77, sequence_start=tick == 0, sequence_end=tick == 5)
            sound.append(output.as_numpy("AUDIO_OUT"))
        assert all(tick.dtype == np.int16 and tick.shape == (1, 7680) for tick in sound)
        sounds.append(np.concatenate(sound, axis=1).astype(np.int64))
    assert np.abs(sounds[1]).max() > 3000, "expected speech"
    assert np.abs(sounds[0] - sounds[1]).max() <= TOLERANCES["code2wav"]["AUDIO_OUT"]
