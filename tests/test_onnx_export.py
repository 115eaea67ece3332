"""The served ONNX graphs equal torch, in float32 and in float16."""

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
from tests.oracle import one_shot_waveform, signal_to_noise_db
from tests.sound import stream_inputs

PEAK = 2.6  # energy of the loudest cell in the speech, log10


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    return tmp_path_factory.mktemp("build")


@pytest.fixture(scope="module")
def repository(settings, build):
    return build_repository(settings, build, print)


@pytest.fixture(scope="module")
def products(settings, tmp_path_factory):
    """Build the repository for ONNX Runtime on a GPU, whose convolutions are matrix products."""
    changed = settings.with_values(triton={"instance": "gpu"})
    return build_repository(changed, tmp_path_factory.mktemp("products"), print)


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


def test_mel_graph_equals_torch_over_a_whole_clip(either, extractor, pcm):
    graph = session(either / "mel_frontend" / "1" / "model.onnx")
    ticks = [pcm[None, start : start + 5120] for start in range(0, len(pcm) - 5119, 5120)]
    for found, expected in zip(stream(graph, "AUDIO_IN", ticks), stream_inputs(extractor, pcm), strict=True):
        of_graph = normalise(torch.from_numpy(found["LOG_MEL"][0]), PEAK)
        assert (of_graph - normalise(expected.log_mel, PEAK)).abs().max() < 1e-4


def test_bits_of_the_mel_graph_do_not_depend_on_the_batch(repository, pcm):
    """Any difference could change a token of a conversation if another conversation joins its batch."""
    options = onnxruntime.SessionOptions()
    config = read_config(repository / "mel_frontend")
    options.intra_op_num_threads = int(config.parameters["intra_op_thread_count"].string_value)
    graph = onnxruntime.InferenceSession(repository / "mel_frontend" / "1" / "model.onnx", options)
    rows = np.stack([pcm[start : start + 5120] for start in (0, 20000, 40000, 60000)])
    together, _ = graph.run(None, {"AUDIO_IN": rows, "past": np.zeros((4, 361), np.float32)})
    for row in range(4):
        alone, _ = graph.run(None, {"AUDIO_IN": rows[row : row + 1], "past": np.zeros((1, 361), np.float32)})
        assert np.array_equal(together[row], alone[0])


def test_code2wav_graph_equals_one_shot_decoding(either, checkpoint: Checkpoint):
    codes = torch.randint(0, 512, (16, 120), generator=torch.Generator().manual_seed(2))
    graph = session(either / "code2wav" / "1" / "model.onnx")
    ticks = [codes[None, :, start : start + 4].numpy() for start in range(0, 120, 4)]
    sound = np.concatenate([found["AUDIO_OUT"][0] for found in stream(graph, "CODES", ticks)])
    expected = (one_shot_waveform(checkpoint.model.code2wav, codes) * 32767).round().numpy()
    assert np.abs(sound - expected).max() <= 1, "one step of PCM16"


@pytest.mark.parametrize("name", ["mel_frontend", "code2wav"])
def test_graphs_for_a_gpu_contain_only_products_instead_of_convolutions(products, name):
    """ONNX Runtime's CUDA provider plans convolutions again for every size of the batch, and no other operation."""
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
def test_convolution_that_cannot_be_a_product_is_refused(conv):
    with pytest.raises(ValueError, match="cannot be a product: expected"):
        as_products(nn.Sequential(conv))


def test_error_of_the_float16_graph_is_the_rounding_of_float16(checkpoint: Checkpoint, checkpoint_folder, tmp_path):
    stage = Code2Wav(load_code2wav(checkpoint_folder, torch.float16), 4)
    file = tmp_path / "model.onnx"
    export_onnx(stage, file, {"AUDIO_OUT": 3277})
    codes = torch.randint(0, 512, (16, 120), generator=torch.Generator().manual_seed(2))
    graph = session(file)
    assert {i.name: i.type for i in graph.get_inputs()}["kv"] == "tensor(float16)"
    ticks = [codes[None, :, start : start + 4].numpy() for start in range(0, 120, 4)]
    waveform = np.concatenate([found["AUDIO_OUT"][0] for found in stream(graph, "CODES", ticks)]) / 32767
    # 11 bits of mantissa are 66 dB; about 40 layers that round their outputs leave 31 dB on this checkpoint.
    assert signal_to_noise_db(one_shot_waveform(checkpoint.model.code2wav, codes), torch.from_numpy(waveform)) > 28


def test_graph_that_differs_from_torch_is_refused(extractor, tmp_path):
    stage = MelFrontend(extractor, 1280)
    file = tmp_path / "model.onnx"
    export_onnx(stage, file, {"LOG_MEL": 1e-3})
    stage.filters *= 1.01
    with pytest.raises(ExportError, match="LOG_MEL differs from torch by .*, expected at most 1e-03"):
        compare(stage, file, {"LOG_MEL": 1e-3})


@pytest.mark.parametrize("name", ["mel_frontend", "code2wav"])
def test_graph_and_config_have_the_same_tensors(repository, name):
    """Triton's native ONNX Runtime backend checks this when it loads the repository."""
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
def test_stages_run_only_on_the_gpu_of_the_engine(settings, extractor, device_map, gpu):
    """Triton would place an instance of a group without `gpus` on every GPU of the machine."""
    on_gpu = settings.with_values(qwen={"device_map": device_map}, triton={"instance": "gpu"}, engine={"slots": 2})
    config = model_config_pb2.ModelConfig()
    complete_stage(config, tensors_of(MelFrontend(extractor, 5120)), on_gpu)
    (group,) = config.instance_group
    assert (group.kind, list(group.gpus)) == (model_config_pb2.ModelInstanceGroup.KIND_GPU, [gpu])


def test_graphs_are_reused_after_a_change_of_unrelated_settings(settings, build, repository):
    """A port, a timeout and a VAD threshold change only the configs of the repository."""
    graph = repository / "code2wav" / "1" / "model.onnx"
    before, reports = graph.stat().st_mtime_ns, []
    changed = settings.with_values(bridge={"port": 9999}, turn={"threshold": 0.7}, engine={"idle_timeout_s": 7.0})
    build_repository(changed, build, reports.append)
    assert graph.stat().st_mtime_ns == before
    assert sum("as exported before" in report for report in reports) == 3
    text = (repository / "thinker_talker" / "config.pbtxt").read_text()
    assert '\\"threshold\\": 0.7' in text
    assert "max_sequence_idle_microseconds: 7000000" in (repository / "mel_frontend" / "config.pbtxt").read_text()
    build_repository(settings, build, print)
