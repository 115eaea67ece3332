"""Triton's requests -> calls of the engine -> Triton's responses. All thinking is in `engine/`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import triton_python_backend_utils as pb_utils

from config import Settings
from engine.engine import Spoken, load_engine
from engine.errors import ConversationError, OptionError

CONTROLS = ("reset",)  # request parameters that may come on any tick; all others are options, on START


class TritonPythonModel:
    """The thinker and the talker behind Triton's sequence batcher."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the checkpoint that `./sca export` named in the model's config."""
        parameters = json.loads(args["model_config"])["parameters"]
        settings = Settings.from_json(parameters["settings"]["string_value"])
        self.engine = load_engine(parameters["checkpoint"]["string_value"], settings)
        self.engine.warm_up()

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One tick of every conversation that the batcher collected, computed together."""
        for key in self.engine.sweep():
            pb_utils.Logger.log_info(f"conversation {key!r} was idle and is closed")
        events: dict[Any, list[dict[str, Any]]] = {}
        results: dict[Any, Spoken | ConversationError] = {}
        log_mels: dict[Any, torch.Tensor] = {}
        for request in requests:
            key = request.correlation_id()
            try:
                events[key] = self._prepare(key, request)
            except ConversationError as error:
                results[key] = error
            else:
                log_mel = pb_utils.get_input_tensor_by_name(request, "LOG_MEL").as_numpy()
                log_mels[key] = torch.from_numpy(log_mel[0].copy())
        results.update(self.engine.tick(log_mels))

        responses = []
        for request in requests:
            key = request.correlation_id()
            responses.append(_response(results[key], events.get(key, [])))
            if request.flags() & pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_END:
                self.engine.close(key)
        return responses

    def finalize(self) -> None:
        """Lets go of the weights."""
        del self.engine

    def _prepare(self, key: Any, request: Any) -> list[dict[str, Any]]:
        """Opens or resets the conversation as the request says; returns the events of that."""
        parameters = json.loads(request.parameters() or "{}")
        controls = {name: parameters.pop(name) for name in CONTROLS if name in parameters}
        if request.flags() & pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START:
            self.engine.open(key, self.engine.parse_options(parameters))
        elif parameters:
            raise OptionError(
                f"request parameter {', '.join(parameters)} came in mid-conversation: "
                f"expected options on the START request, and here only {', '.join(CONTROLS)}"
            )
        if not isinstance(controls.get("reset", False), bool):
            raise OptionError(f"reset is {controls['reset']!r}, expected true or false")
        if controls.get("reset"):
            self.engine.reset(key)
            return [{"type": "reset"}]
        return []


def _response(result: Spoken | ConversationError, events: list[dict[str, Any]]) -> Any:
    if isinstance(result, ConversationError):
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(result), pb_utils.TritonError.INVALID_ARG))
    text = np.array([[result.text.encode()]], dtype=np.object_)
    event_list = np.array([[json.dumps(events).encode()]], dtype=np.object_)
    return pb_utils.InferenceResponse(
        [
            pb_utils.Tensor("CODES", result.codes[None].numpy()),
            pb_utils.Tensor("TEXT", text),
            pb_utils.Tensor("EVENTS", event_list),
        ]
    )
