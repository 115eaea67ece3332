"""The Python-based ONNX Runtime backend separates the states of sequences, tested without Triton."""

from __future__ import annotations

import importlib.util
import json
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format

from export.repository import build_repository
from export.triton_config import read_config
from tests.conftest import ROOT

START, END = 1, 2
TYPES = {"TYPE_FP32": np.float32, "TYPE_INT64": np.int64, "TYPE_INT16": np.int16, "TYPE_FP16": np.float16}


class TritonError:
    INVALID_ARG = 3

    def __init__(self, text: str, code: int):
        self.text = text


def stand_in() -> ModuleType:
    module: Any = ModuleType("triton_python_backend_utils")
    module.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START, module.TRITONSERVER_REQUEST_FLAG_SEQUENCE_END = START, END
    module.TritonModelException = RuntimeError
    module.triton_string_to_numpy = TYPES.__getitem__
    module.get_input_tensor_by_name = lambda request, name: SimpleNamespace(as_numpy=lambda: request.tensors[name])
    module.Tensor = lambda name, array: SimpleNamespace(name=name, array=array)
    module.InferenceResponse = lambda tensors=(), error=None: SimpleNamespace(tensors=tensors, error=error)
    module.TritonError = TritonError
    return module


@pytest.fixture(params=["HostStates", "DeviceStates"])
def code2wav(request, monkeypatch, settings, tmp_path) -> Any:
    """Return the stage code2wav with states in numpy arrays or in torch tensors, bound as on a GPU."""
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", stand_in())
    spec = importlib.util.spec_from_file_location("onnx_backend", ROOT / "backends" / "onnxruntime" / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if request.param == "DeviceStates":
        module.HostStates = lambda specs, outputs, rows: module.DeviceStates(specs, outputs, rows, "cpu")
    repository = build_repository(settings, tmp_path, print)
    config = json_format.MessageToDict(read_config(repository / "code2wav"), preserving_proto_field_name=True)
    config |= {"max_batch_size": 4}
    model = module.TritonPythonModel()
    arguments = {"model_config": json.dumps(config), "model_repository": str(repository / "code2wav")}
    model.initialize({**arguments, "model_version": "1", "model_instance_kind": "CPU"})
    return model


def tick(key: Any, number: int, flags: int = 0) -> Any:
    """Return the request of a conversation's tick, whose codes depend only on `key` and `number`."""
    codes = np.random.RandomState(hash((key, number)) % 2**31).randint(0, 512, (1, 16, 4))
    tensors = {"CODES": codes, "BEGIN": np.zeros((1, 1), np.int64)}
    return SimpleNamespace(correlation_id=lambda: key, flags=lambda: flags, tensors=tensors)


def sound_of(response: Any) -> np.ndarray:
    assert response.error is None, response.error.text
    return response.tensors[0].array[0]


def test_sequences_in_changing_batches_equal_themselves_alone(code2wav):
    """Three sequences start in different ticks, another one reuses the row of a sequence that ended, an id returns."""
    alone = {}
    for key in (11, 12, 13):
        ticks = [sound_of(code2wav.execute([tick(key, n, START if n == 0 else END * (n == 5))])[0]) for n in range(6)]
        alone[key] = ticks
    assert np.abs(alone[11][3]).max() > 100
    ages = {11: 0, 12: -2, 13: -4}
    for _ in range(10):
        going = [key for key, age in ages.items() if 0 <= age < 6]
        requests = [tick(key, ages[key], START if ages[key] == 0 else END * (ages[key] == 5)) for key in going]
        for key, response in zip(going, code2wav.execute(requests), strict=True):
            assert np.abs(sound_of(response).astype(int) - alone[key][ages[key]]).max() <= 1
        ages = {key: age + 1 for key, age in ages.items()}
    assert code2wav.sequences.count <= 5, "expected rows that are reused"
    again = code2wav.execute([tick(11, 0, START), tick(11, 1), tick(11, 0, START), tick(11, 1)])
    for response, number in zip(again, (0, 1, 0, 1), strict=True):
        assert np.abs(sound_of(response).astype(int) - alone[11][number]).max() <= 1


def test_sequence_without_start_gets_an_error_and_others_continue(code2wav):
    first, second = code2wav.execute([tick(21, 3), tick(22, 0, START)])
    assert first.error.text.startswith("code2wav: sequence 21 has no state here, expected START")
    sound_of(second)


def test_sequence_beyond_the_idle_timeout_is_dropped(code2wav, monkeypatch):
    code2wav.execute([tick(31, 0, START)])
    monkeypatch.setattr(code2wav.sequences, "_idle_s", -1.0)
    (response,) = code2wav.execute([tick(31, 1)])
    assert "has no state here" in response.error.text


def test_request_without_a_sequence_leaves_no_state(code2wav):
    """The next request without a sequence, and a new sequence, start from zero states."""
    alone = sound_of(code2wav.execute([tick(61, 0, START)])[0])
    first = sound_of(code2wav.execute([tick(0, 0)])[0])
    assert np.array_equal(sound_of(code2wav.execute([tick(0, 0)])[0]), first)
    assert np.array_equal(sound_of(code2wav.execute([tick(61, 0, START)])[0]), alone)


def test_sequences_are_dropped_if_their_states_cannot_be_stored(code2wav, monkeypatch):
    """Storing fails, for example, if memory for further rows runs out."""
    code2wav.execute([tick(51, n, START * (n == 0)) for n in range(1)])

    def fails(*_):
        raise MemoryError

    monkeypatch.setattr(code2wav.states, "keep", fails)
    with pytest.raises(MemoryError):
        code2wav.execute([tick(51, 1), *(tick(key, 0, START) for key in range(52, 60))])
    monkeypatch.undo()
    for key in (51, 52, 59):
        (response,) = code2wav.execute([tick(key, 1)])
        assert "has no state here" in response.error.text
    restarted = code2wav.execute([tick(key, 0, START) for key in range(52, 60)])
    assert all(response.error is None for response in restarted)


def test_rows_grow_with_the_number_of_sequences(code2wav):
    alone = sound_of(code2wav.execute([tick(40, 0, START)])[0])
    for number in range(2):
        responses = code2wav.execute([tick(40 + i, number, START * (number == 0)) for i in range(20)])
        assert all(response.error is None for response in responses)
    code2wav.execute([tick(40, 0, START)])
    assert np.abs(sound_of(code2wav.execute([tick(40, 0, START)])[0]).astype(int) - alone).max() <= 1
