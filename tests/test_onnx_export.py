"""The graphs that are served compute what torch computes, in float32 and in float16."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from tritonclient.grpc import model_config_pb2

from engine.checkpoint import Checkpoint
from engine.log_mel import normalise
from export.code2wav import Code2Wav
from export.mel_frontend import MelFrontend
from export.onnx_stage import ExportError, compare, export_onnx
from export.products import as_products
from export.repository import build_repository
from export.triton_config import complete_stage, read_config, tensors_of
from export.weights import load_code2wav
from tests.conftest import BUILD
from tests.oracle import one_shot_waveform, signal_to_noise_db
from tests.sound import stream_inputs

PEAK = 2.6  # log10 of the energy of the loudest cell in the speech


@pytest.fixture(scope="module")
def repository(settings):
    return build_repository(settings, BUILD / "in_process", print)


@pytest.fixture(scope="module")
def products(settings):
    """As for ONNX Runtime on a GPU."""
    changed = settings.with_values(triton={"instance": "gpu"})
    return build_repository(changed, BUILD / "in_process_products", print)


@pytest.fixture(params=["repository", "products"])
def either(request):
    return request.getfixturevalue(request.param)


def session(file) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])


def stream(graph: onnxruntime.InferenceSession, name: str, ticks: list[np.ndarray]) -> list[list[np.ndarray]]:
    types = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}
    others = [i for i in graph.get_inputs() if i.name != name]
    states = {i.name: np.zeros([1, *i.shape[1:]], types[i.type]) for i in others if i.name != "BEGIN"}
    begin = {i.name: np.zeros([1, 1], np.int64) for i in others if i.name == "BEGIN"}
    outputs = []
    for tick in ticks:
        found = dict(
            zip([o.name for o in graph.get_outputs()], graph.run(None, {name: tick, **begin, **states}), strict=True)
        )
        states = {state: found["new_" + state] for state in states}
        outputs.append(found)
    return outputs


def test_the_mel_graph_equals_torch_over_a_whole_clip(either, extractor, pcm):
    graph = session(either / "mel_frontend" / "1" / "model.onnx")
    ticks = [pcm[None, start : start + 5120] for start in range(0, len(pcm) - 5119, 5120)]
    for found, expected in zip(stream(graph, "AUDIO_IN", ticks), stream_inputs(extractor, pcm), strict=True):
        ours, torchs = (normalise(cells, PEAK) for cells in (torch.from_numpy(found["LOG_MEL"][0]), expected.log_mel))
        assert (ours - torchs).abs().max() < 1e-4


def test_in_a_batch_the_mel_graph_gives_the_same_bits(repository, pcm):
    """A difference here, however small, could tip a token of one conversation by the company it is in."""
    options = onnxruntime.SessionOptions()
    config = read_config(repository / "mel_frontend")
    options.intra_op_num_threads = int(config.parameters["intra_op_thread_count"].string_value)
    graph = onnxruntime.InferenceSession(repository / "mel_frontend" / "1" / "model.onnx", options)
    rows = np.stack([pcm[start : start + 5120] for start in (0, 20000, 40000, 60000)])
    together, _ = graph.run(None, {"AUDIO_IN": rows, "past": np.zeros((4, 361), np.float32)})
    for row in range(4):
        alone, _ = graph.run(None, {"AUDIO_IN": rows[row : row + 1], "past": np.zeros((1, 361), np.float32)})
        assert np.array_equal(together[row], alone[0])


def test_the_code2wav_graph_equals_one_shot(either, checkpoint: Checkpoint):
    codes = torch.randint(0, 512, (16, 120), generator=torch.Generator().manual_seed(2))
    graph = session(either / "code2wav" / "1" / "model.onnx")
    ticks = [codes[None, :, start : start + 4].numpy() for start in range(0, 120, 4)]
    sound = np.concatenate([found["AUDIO_OUT"][0] for found in stream(graph, "CODES", ticks)])
    expected = (one_shot_waveform(checkpoint.model.code2wav, codes) * 32767).round().numpy()
    assert np.abs(sound - expected).max() <= 1, "one step of PCM16"


@pytest.mark.parametrize("name", ["mel_frontend", "code2wav"])
def test_on_a_gpu_nothing_is_planned_anew_for_another_batch(products, name):
    """By ONNX Runtime: its CUDA provider plans convolutions, and nothing else of these graphs."""
    kinds = {node.op_type for node in onnx.load(products / name / "1" / "model.onnx").graph.node}
    assert "MatMul" in kinds
    assert not {kind for kind in kinds if "Conv" in kind or "LSTM" in kind or "Pool" in kind}


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv1d(4, 6, 3, stride=2),
        nn.Conv1d(4, 6, 3, padding=1),
        nn.Conv1d(4, 4, 3, groups=2),
        nn.Conv1d(4, 6, 3, bias=False),
        nn.ConvTranspose1d(4, 6, 4, stride=2, bias=False),
        nn.ConvTranspose1d(4, 6, 5, stride=2),
    ],
)
def test_a_convolution_that_is_no_product_is_refused(conv):
    with pytest.raises(ValueError, match="cannot be a product: expected"):
        as_products(nn.Sequential(conv))


def test_the_float16_graph_is_as_exact_as_float16_is(checkpoint: Checkpoint, checkpoint_folder, tmp_path):
    stage = Code2Wav(load_code2wav(checkpoint_folder, torch.float16), 4)
    file = tmp_path / "model.onnx"
    export_onnx(stage, file, {"AUDIO_OUT": 3277})
    codes = torch.randint(0, 512, (16, 120), generator=torch.Generator().manual_seed(2))
    graph = session(file)
    assert {i.name: i.type for i in graph.get_inputs()}["kv"] == "tensor(float16)"
    ticks = [codes[None, :, start : start + 4].numpy() for start in range(0, 120, 4)]
    waveform = np.concatenate([found["AUDIO_OUT"][0] for found in stream(graph, "CODES", ticks)]) / 32767
    # 11 bits of mantissa are 66 dB; some 40 layers, each rounding its output, leave 31 dB of them on this checkpoint.
    assert signal_to_noise_db(one_shot_waveform(checkpoint.model.code2wav, codes), torch.from_numpy(waveform)) > 28


def test_a_graph_that_differs_is_not_served(extractor, tmp_path):
    stage = MelFrontend(extractor, 1280)
    file = tmp_path / "model.onnx"
    export_onnx(stage, file, {"LOG_MEL": 1e-3})
    stage.filters *= 1.01
    with pytest.raises(ExportError, match="LOG_MEL differs from torch by .*, expected at most 1e-03"):
        compare(stage, file, {"LOG_MEL": 1e-3})


@pytest.mark.parametrize("name", ["mel_frontend", "code2wav"])
def test_graph_and_config_name_the_same_tensors(repository, name):
    """What Triton's own ONNX Runtime backend checks when it loads the repository."""
    config = read_config(repository / name)
    graph = onnx.load(repository / name / "1" / "model.onnx").graph
    tensors = {t.name: ([d.dim_value for d in t.type.tensor_type.shape.dim][1:], t.type.tensor_type.elem_type)
               for t in (*graph.input, *graph.output)}  # fmt: skip
    onnx_types = {"TYPE_INT16": 5, "TYPE_INT64": 7, "TYPE_FP16": 10, "TYPE_FP32": 1}
    states = config.sequence_batching.state
    named = [(t.name, t) for t in (*config.input, *config.output)]
    named += [(state.input_name, state) for state in states] + [(state.output_name, state) for state in states]
    assert dict(named).keys() == tensors.keys()
    for tensor_name, tensor in named:
        dims, elem_type = tensors[tensor_name]
        assert list(tensor.dims) == dims
        assert onnx_types[model_config_pb2.DataType.Name(tensor.data_type)] == elem_type
    assert config.backend == "onnxruntime"
    assert sorted(s.input_name for s in states) == [s[4:] for s in sorted(s.output_name for s in states)]
    assert all(initial.zero_data for state in states for initial in state.initial_state)
    assert {dimension.dim_param for t in graph.input for dimension in t.type.tensor_type.shape.dim[:1]} == {"batch"}


@pytest.mark.parametrize(("device_map", "gpu"), [("cuda", 0), ("cuda:3", 3), ("auto", 0)])
def test_the_stages_run_on_the_engines_gpu_alone(settings, extractor, device_map, gpu):
    """An instance group without `gpus` would put an instance on every GPU of the machine."""
    on_gpu = settings.with_values(qwen={"device_map": device_map}, triton={"instance": "gpu"}, engine={"slots": 2})
    config = model_config_pb2.ModelConfig()
    complete_stage(config, tensors_of(MelFrontend(extractor, 5120)), on_gpu)
    (group,) = config.instance_group
    assert (group.kind, list(group.gpus)) == (model_config_pb2.ModelInstanceGroup.KIND_GPU, [gpu])


def test_a_setting_that_no_graph_depends_on_exports_nothing_again(settings, repository):
    """A port, a limit, how turns are told: the repository is assembled anew around the graphs that are there."""
    graph = repository / "code2wav" / "1" / "model.onnx"
    before, told = graph.stat().st_mtime_ns, []
    changed = settings.with_values(bridge={"port": 9999}, turn={"threshold": 0.7}, engine={"idle_timeout_s": 7.0})
    build_repository(changed, BUILD / "in_process", told.append)
    assert graph.stat().st_mtime_ns == before
    assert sum("as exported before" in step for step in told) == 3
    text = (repository / "thinker_talker" / "config.pbtxt").read_text()
    assert '\\"threshold\\": 0.7' in text
    assert "max_sequence_idle_microseconds: 7000000" in (repository / "mel_frontend" / "config.pbtxt").read_text()
    build_repository(settings, BUILD / "in_process", print)
