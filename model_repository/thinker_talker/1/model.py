"""Adapter of the engine to Triton: requests to calls of the engine, results to responses."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton_python_backend_utils as pb_utils
from metrics import EngineMetrics

from config import Settings
from contract.controls import CONTROLS, Controls
from contract.errors import ErrorCode, coded
from engine.engine import load_engine
from engine.errors import ConversationError, DeviceLostError, OptionError
from engine.options import parse_controls
from engine.tick import TickInput, TickOutput, TickResult


class TritonPythonModel:
    """The thinker and the talker behind Triton's sequence batcher."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the checkpoint that `./sca export` named in the model's config."""
        parameters = json.loads(args["model_config"])["parameters"]
        settings = Settings.from_json(parameters["settings"]["string_value"])
        predictor = Path(args["model_repository"]) / "code_predictor"
        checkpoint = parameters["checkpoint"]["string_value"]
        self.engine = load_engine(checkpoint, settings, predictor if predictor.is_dir() else None)
        self.metrics = EngineMetrics(self.engine)
        self.lost = ""
        pb_utils.Logger.log_info(f"the engine takes {self.engine.memory}")

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Compute one tick of every conversation that the batcher collected, all of them together."""
        if self.lost:
            return [_error(DeviceLostError.code, self.lost) for _ in requests]
        for key in self.engine.sweep():
            pb_utils.Logger.log_info(f"conversation {key!r} was idle and is closed")
        responses: list[Any] = [None] * len(requests)
        try:
            for indices in _rounds(requests):
                for index, response in zip(indices, self._tick([requests[i] for i in indices]), strict=True):
                    responses[index] = response
        except DeviceLostError as error:
            self._end_server(error)
        self.metrics.update()
        return [response or _error(DeviceLostError.code, self.lost) for response in responses]

    def finalize(self) -> None:
        """Release the weights."""
        del self.metrics, self.engine

    def _tick(self, requests: Sequence[Any]) -> list[Any]:
        """Return the responses to requests of different conversations. Raises `DeviceLostError`."""
        results: dict[Any, TickResult] = {}
        inputs: dict[Any, TickInput] = {}
        for request in requests:
            key = request.correlation_id()
            try:
                inputs[key] = self._input(key, request)
            except ConversationError as error:
                results[key] = error
            except Exception as error:  # the failure of one request does not affect the others in its batch
                pb_utils.Logger.log_error(f"conversation {key!r} is closed: {error!r}")
                self.engine.close(key)
                results[key] = ConversationError(f"conversation {key!r} failed and is closed: {error!r}")
        results.update(self.engine.tick(inputs))
        for request in requests:
            if request.flags() & pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_END:
                self.engine.close(request.correlation_id())
        return [_response(results[request.correlation_id()]) for request in requests]

    def _input(self, key: Any, request: Any) -> TickInput:
        """Open or reset the conversation as the request requires and return its tick. Raises `ConversationError`.

        In mid-conversation a bad parameter is reported by an event of the tick, whose audio is processed as usual.
        """
        log_mel, pcm = (
            pb_utils.get_input_tensor_by_name(request, name).as_numpy()[0] for name in ("LOG_MEL", "AUDIO_IN")
        )
        tick = TickInput(torch.from_numpy(log_mel.copy()), pcm.copy())
        parameters = json.loads(request.parameters() or "{}")
        if request.flags() & pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START:
            self.engine.close(key)  # START ends a conversation with the same id, even if the new one is refused
            controls = parse_controls(parameters, self.engine.settings)
            self.engine.open(key, self.engine.parse_options(parameters))
            return tick._replace(controls=controls)
        try:
            controls = self._controls(parameters)
        except OptionError as error:
            return tick._replace(rejected=str(error))
        if controls.reset:
            self.engine.reset(key)
        return tick._replace(controls=controls)

    def _controls(self, parameters: dict[str, Any]) -> Controls:
        controls = parse_controls(parameters, self.engine.settings)
        if parameters:
            expected = f"expected options on the START request, and here only {', '.join(CONTROLS)}"
            raise OptionError(f"request parameters in mid-conversation: {expected}; got {', '.join(parameters)}")
        return controls

    def _end_server(self, error: DeviceLostError) -> None:
        """End the server, which would stay ready while every request fails; its supervisor restarts it."""
        self.lost = f"the device is lost and the server ends: {error}"
        pb_utils.Logger.log_error(self.lost)
        os.kill(os.getppid(), signal.SIGTERM)  # tritonserver, whose child this process is


def _response(result: TickResult) -> Any:
    if isinstance(result, ConversationError):
        return _error(result.code, str(result))
    return pb_utils.InferenceResponse(_tensors(result))


def _tensors(output: TickOutput) -> list[Any]:
    events = json.dumps([event.to_json() for event in output.events])
    return [
        pb_utils.Tensor("CODES", np.ascontiguousarray(output.codes[None].numpy())),
        pb_utils.Tensor("BEGIN", np.array([[int(output.begins)]], np.int64)),
        pb_utils.Tensor("TEXT", np.array([[output.text.encode()]], np.object_)),
        pb_utils.Tensor("EVENTS", np.array([[events.encode()]], np.object_)),
    ]


def _error(code: ErrorCode, message: str) -> Any:
    error = pb_utils.TritonError(coded(code, message), pb_utils.TritonError.INVALID_ARG)
    return pb_utils.InferenceResponse(error=error)


def _rounds(requests: Sequence[Any]) -> Iterator[list[int]]:
    """Yield the indices of requests in rounds, each conversation at most once a round.

    There is one round, except if an id is used again at once: its END and its next START may come in one batch.
    """
    waiting = list(range(len(requests)))
    while waiting:
        first = {requests[i].correlation_id(): i for i in reversed(waiting)}
        yield sorted(first.values())
        waiting = [i for i in waiting if i not in first.values()]
