"""Triton's requests -> calls of the engine -> Triton's responses. All thinking is in `engine/`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import triton_python_backend_utils as pb_utils
from metrics import EngineMetrics

from config import Settings
from engine.conversation import Heard, Spoken
from engine.engine import load_engine
from engine.errors import ConversationError, OptionError
from engine.options import CONTROLS, Controls, parse_controls


class TritonPythonModel:
    """The thinker and the talker behind Triton's sequence batcher."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the checkpoint that `./sca export` named in the model's config."""
        parameters = json.loads(args["model_config"])["parameters"]
        settings = Settings.from_json(parameters["settings"]["string_value"])
        self.engine = load_engine(parameters["checkpoint"]["string_value"], settings)
        self.engine.warm_up()
        self.metrics = EngineMetrics(self.engine)
        pb_utils.Logger.log_info(f"the engine takes {self.engine.memory}")

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One tick of every conversation that the batcher collected, computed together."""
        for key in self.engine.sweep():
            pb_utils.Logger.log_info(f"conversation {key!r} was idle and is closed")
        responses: list[Any] = [None] * len(requests)
        for indices in _rounds(requests):
            for index, response in zip(indices, self._tick([requests[i] for i in indices]), strict=True):
                responses[index] = response
        self.metrics.update()
        return responses

    def finalize(self) -> None:
        """Lets go of the weights."""
        del self.metrics, self.engine

    def _tick(self, requests: Sequence[Any]) -> list[Any]:
        """Responses to requests of different conversations."""
        results: dict[Any, Spoken | ConversationError] = {}
        heard: dict[Any, Heard] = {}
        for request in requests:
            key = request.correlation_id()
            try:
                controls = self._prepare(key, request)
                log_mel, pcm = (
                    pb_utils.get_input_tensor_by_name(request, name).as_numpy()[0] for name in ("LOG_MEL", "AUDIO_IN")
                )
                heard[key] = Heard(torch.from_numpy(log_mel.copy()), pcm.copy(), controls)
            except ConversationError as error:
                results[key] = error
            except Exception as error:  # whatever one request does to itself, the others in its batch go on
                pb_utils.Logger.log_error(f"conversation {key!r} is closed: {error!r}")
                self.engine.close(key)
                results[key] = ConversationError(f"conversation {key!r} failed and is closed: {error!r}")
        results.update(self.engine.tick(heard))
        for request in requests:
            if request.flags() & pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_END:
                self.engine.close(request.correlation_id())
        return [self._response(results[request.correlation_id()]) for request in requests]

    def _response(self, result: Spoken | ConversationError) -> Any:
        if isinstance(result, ConversationError):
            error = pb_utils.TritonError(str(result), pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(error=error)
        codes = result.codes.clone()
        codes[0, 0] += self.engine.codebook_size * result.begins
        text = np.array([[result.text.encode()]], dtype=np.object_)
        events = np.array([[json.dumps(result.events).encode()]], dtype=np.object_)
        return pb_utils.InferenceResponse(
            [
                pb_utils.Tensor("CODES", np.ascontiguousarray(codes[None].numpy())),
                pb_utils.Tensor("TEXT", text),
                pb_utils.Tensor("EVENTS", events),
            ]
        )

    def _prepare(self, key: Any, request: Any) -> Controls:
        """Opens or resets the conversation as the request says; returns what else it asks for."""
        start = request.flags() & pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START
        if start:
            self.engine.close(key)  # of an id used again, whatever becomes of the new conversation
        parameters = json.loads(request.parameters() or "{}")
        controls = parse_controls(parameters, self.engine.settings.engine.dialect)
        if start:
            self.engine.open(key, self.engine.parse_options(parameters))
        elif parameters:
            raise OptionError(
                f"request parameter {', '.join(parameters)} came in mid-conversation: "
                f"expected options on the START request, and here only {', '.join(CONTROLS)}"
            )
        if controls.reset:
            self.engine.reset(key)
        return controls


def _rounds(requests: Sequence[Any]) -> Iterator[list[int]]:
    """Indices of requests, each conversation once a round.

    One round, but for an id used again at once: its END and its next START may come in one batch.
    """
    waiting = list(range(len(requests)))
    while waiting:
        first = {requests[i].correlation_id(): i for i in reversed(waiting)}
        yield sorted(first.values())
        waiting = [i for i in waiting if i not in first.values()]
