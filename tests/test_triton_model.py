"""Triton's side of the engine, with a stand-in for the module that Triton gives its Python models."""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engine.errors import DeviceLostError
from tests.conftest import ROOT


class Backend(ModuleType):
    """What of triton_python_backend_utils the model uses."""

    TRITONSERVER_REQUEST_FLAG_SEQUENCE_START = 1
    TRITONSERVER_REQUEST_FLAG_SEQUENCE_END = 2

    def __init__(self) -> None:
        super().__init__("triton_python_backend_utils")
        self.logged: list[str] = []
        self.Logger = SimpleNamespace(log_info=self.logged.append, log_error=self.logged.append)

    class MetricFamily:
        COUNTER, GAUGE = 0, 1

    class TritonError:
        INVALID_ARG = 3

        def __init__(self, message: str, code: int):
            self.message = message

    class Tensor:
        def __init__(self, name: str, array: np.ndarray):
            self.name, self.array = name, array

    class InferenceResponse:
        def __init__(self, tensors: Any = (), error: Any = None):
            self.tensors, self.error = tensors, error

    @staticmethod
    def get_input_tensor_by_name(request: Any, name: str) -> Any:
        array = np.zeros((1, 128, 32), np.float32) if name == "LOG_MEL" else np.zeros((1, 5120), np.int16)
        return SimpleNamespace(as_numpy=lambda: array)


class Request:
    """A tick of a conversation."""

    def __init__(self, key: str, flags: int = 0, **parameters: Any):
        self.correlation_id, self.flags = lambda: key, lambda: flags
        self.parameters = lambda: json.dumps(parameters)


@pytest.fixture
def backend(monkeypatch) -> Backend:
    module = Backend()
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", module)
    monkeypatch.syspath_prepend(str(ROOT / "model_repository" / "thinker_talker" / "1"))
    for name in ("model", "metrics"):
        sys.modules.pop(name, None)
    yield module
    for name in ("model", "metrics"):
        sys.modules.pop(name, None)


@pytest.fixture
def model(backend: Backend, engine) -> Any:
    made = importlib.import_module("model").TritonPythonModel()
    made.engine, made.lost = engine, ""
    made.metrics = SimpleNamespace(update=lambda: None)
    return made


def test_a_lost_device_ends_the_server_with_its_reason(model, backend, monkeypatch):
    """Triton would stay ready and fail every request: it gets SIGTERM, and clients are told until it is gone."""
    killed: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda process, number: killed.append((process, number)))
    lost = DeviceLostError("CUDA error: device-side assert triggered")
    monkeypatch.setattr(model.engine, "tick", lambda _: (_ for _ in ()).throw(lost))
    responses = model.execute([Request("a", flags=1), Request("b", flags=1)])
    reason = "the device is lost and the server ends: CUDA error: device-side assert triggered"
    coded = f"[tick_failed] {reason}"
    assert [response.error.message for response in responses] == [coded] * 2
    assert killed == [(os.getppid(), signal.SIGTERM)]
    assert backend.logged[-1] == reason
    assert model.execute([Request("c", flags=1)])[0].error.message == coded
    assert len(killed) == 1, "once"


def test_a_bad_control_is_an_event_and_a_bad_start_an_error(model):
    (bad,) = model.execute([Request("a", flags=1, voice="nobody")])
    assert bad.error.message.startswith("[bad_option] voice: expected one of")
    (begun,) = model.execute([Request("a", flags=1)])
    assert begun.error is None
    (told,) = model.execute([Request("a", commit=True)])
    assert told.error is None
    events = json.loads(told.tensors[3].array.item())
    assert events[0]["code"] == "bad_control"
    assert "commit: expected a server of the dialect 'turn', got 'sca'" in events[0]["message"]
