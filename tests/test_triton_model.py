"""The Python model that connects the engine to Triton, with a stand-in for Triton's Python module."""

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

from contract.errors import ErrorCode, decode
from engine.errors import ContextFullError, ConversationError, DeviceLostError, EngineFullError, PromptTooLongError
from tests.conftest import ROOT


class Backend(ModuleType):
    """Stand-in for the part of triton_python_backend_utils that the model uses."""

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


def test_lost_device_terminates_the_server_with_the_reason(model, backend, monkeypatch):
    """Triton would stay ready and fail every request, so it receives SIGTERM; requests until its end get the reason."""
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
    assert len(killed) == 1, "expected one signal"


def test_invalid_control_emits_an_event_and_invalid_option_is_an_error(model):
    (invalid,) = model.execute([Request("a", flags=1, voice="unknown")])
    assert invalid.error.message.startswith("[bad_option] voice: expected one of")
    (started,) = model.execute([Request("a", flags=1)])
    assert started.error is None
    (rejected,) = model.execute([Request("a", commit=True)])
    assert rejected.error is None
    events = json.loads(rejected.tensors[3].array.item())
    assert events[0]["code"] == "bad_control"
    assert "commit: expected a server of the dialect 'turn', got 'sca'" in events[0]["message"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (EngineFullError("all slots are taken"), ErrorCode.FULL),
        (PromptTooLongError("expected 9 tokens, got 10"), ErrorCode.PROMPT_TOO_LONG),
        (ContextFullError("the context is full"), ErrorCode.CONTEXT_FULL),
        (ConversationError("the tick failed"), ErrorCode.TICK_FAILED),
    ],
)
def test_error_of_the_engine_keeps_its_code(model, monkeypatch, error: ConversationError, code: ErrorCode):
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(model.engine, "open", fail)
    (response,) = model.execute([Request("a", flags=1)])
    assert decode(response.error.message) == (code, str(error))
