"""Triton's ONNX Runtime backend, where only the pip-installed Triton is there.

NVIDIA's container has the native one, in C++. This one is Python-based, serves the same repository unchanged, and
honours the part of the config that it needs: `sequence_batching.state` with zero initial states. A sequence's states
begin at START, are carried in this process, and are freed by END or by idling.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils

NO_SEQUENCE = 0  # the correlation id of a request to a model without states


class SequenceStates:
    """The carried states of every sequence, and when each was last used."""

    def __init__(self, specs: Sequence[dict[str, Any]], idle_s: float):
        for spec in specs:
            if not all(initial.get("zero_data") for initial in spec.get("initial_state", [])):
                raise pb_utils.TritonModelException(
                    f"state {spec['input_name']} has an initial_state from a file, expected zero_data: true"
                )
        self.input_names = [spec["input_name"] for spec in specs]
        self.output_names = [spec["output_name"] for spec in specs]
        self._zeros = [
            np.zeros([int(dim) for dim in spec["dims"]], pb_utils.triton_string_to_numpy(spec["data_type"]))
            for spec in specs
        ]
        self._idle_s = idle_s
        self._states: dict[Any, tuple[float, list[np.ndarray]]] = {}

    def of(self, key: Any, start: bool) -> list[np.ndarray]:
        """States of a sequence; raises KeyError for one that did not begin, or idled for too long."""
        if start:
            self.free(key)  # of an id used again, whatever becomes of this request
        return self._zeros if start or key == NO_SEQUENCE else self._states[key][1]

    def zeros(self, batch: int) -> dict[str, np.ndarray]:
        """States of a batch of sequences that begin, by input name."""
        return {
            name: np.repeat(zero[None], batch, axis=0) for name, zero in zip(self.input_names, self._zeros, strict=True)
        }

    def put(self, key: Any, states: list[np.ndarray]) -> None:
        """Keeps a sequence's new states."""
        if key != NO_SEQUENCE:
            self._states[key] = (time.monotonic(), states)

    def free(self, key: Any) -> None:
        """Forgets a sequence."""
        self._states.pop(key, None)

    def sweep(self) -> None:
        """Forgets the sequences that have idled for too long: Triton frees their slots without a word."""
        oldest = time.monotonic() - self._idle_s
        for key in [key for key, (used, _) in self._states.items() if used < oldest]:
            self.free(key)


class TritonPythonModel:
    """One ONNX model, run for all requests of a batch at once."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads model.onnx of this model's version."""
        config = json.loads(args["model_config"])
        batching = config.get("sequence_batching", {})
        self.name = config["name"]
        self.inputs = [tensor["name"] for tensor in config["input"]]
        self.outputs = [tensor["name"] for tensor in config["output"]]
        idle_us = float(batching.get("max_sequence_idle_microseconds") or 1_000_000)  # Triton's own default
        self.states = SequenceStates(batching.get("state", []), idle_us / 1e6)

        options = onnxruntime.SessionOptions()
        threads = config.get("parameters", {}).get("intra_op_thread_count")
        options.intra_op_num_threads = int(threads["string_value"]) if threads else 0
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # other stages need the cores
        provider: Any = "CPUExecutionProvider"
        if args["model_instance_kind"] == "GPU":
            if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
                raise pb_utils.TritonModelException(
                    f"{self.name} is to run on a GPU, but the installed onnxruntime is for the CPU: "
                    "set triton.instance to cpu, or install onnxruntime-gpu"
                )
            provider = ("CUDAExecutionProvider", {"device_id": args["model_instance_device_id"]})
        file = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self.session = onnxruntime.InferenceSession(file, options, [provider])
        self._warm_up(config)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One step of every sequence in the batch; a sequence that did not begin gets an error of its own."""
        self.states.sweep()
        responses: list[Any] = [None] * len(requests)
        for indices in _rounds(requests):
            self._step(requests, indices, responses)
        return responses

    def _step(self, requests: Sequence[Any], indices: Sequence[int], responses: list[Any]) -> None:
        """Fills in the responses to requests of different sequences."""
        ready, inputs, states = [], [], []
        for index in indices:
            request = requests[index]
            key, start = _key(request), _flag(request, pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START)
            try:
                states.append(self.states.of(key, start))
            except KeyError:
                responses[index] = _error(
                    f"{self.name}: sequence {key!r} has no state here, expected START on its first request "
                    "and no longer pause than max_sequence_idle_microseconds"
                )
                continue
            ready.append(index)
            inputs.append([pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self.inputs])
        if ready:
            for index, response in zip(ready, self._run([requests[i] for i in ready], inputs, states), strict=True):
                responses[index] = response
        for index in indices:
            if _flag(requests[index], pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_END):
                self.states.free(_key(requests[index]))

    def _warm_up(self, config: dict[str, Any]) -> None:
        """Runs zeros, alone and in a full batch: a first tick is as fast as a second."""
        for batch in {1, max(1, int(config["max_batch_size"]))}:
            zeros = {
                tensor["name"]: np.zeros(
                    [batch, *(int(dim) for dim in tensor["dims"])],
                    pb_utils.triton_string_to_numpy(tensor["data_type"]),
                )
                for tensor in config["input"]
            }
            self.session.run(None, {**zeros, **self.states.zeros(batch)})

    def _run(
        self, requests: Sequence[Any], inputs: Sequence[Sequence[np.ndarray]], states: Sequence[Sequence[np.ndarray]]
    ) -> list[Any]:
        sizes = [tensors[0].shape[0] for tensors in inputs]  # 1 in a sequence; a model without states may get more
        feed = {name: np.concatenate([tensors[i] for tensors in inputs]) for i, name in enumerate(self.inputs)}
        for i, name in enumerate(self.states.input_names):
            feed[name] = np.concatenate(
                [np.repeat(state[i][None], size, axis=0) for state, size in zip(states, sizes, strict=True)]
            )
        found = self.session.run([*self.outputs, *self.states.output_names], feed)
        responses, first = [], 0
        for request, size in zip(requests, sizes, strict=True):
            tensors = [
                pb_utils.Tensor(name, np.ascontiguousarray(found[i][first : first + size]))
                for i, name in enumerate(self.outputs)
            ]
            self.states.put(_key(request), [array[first].copy() for array in found[len(self.outputs) :]])
            responses.append(pb_utils.InferenceResponse(tensors))
            first += size
        return responses

    def finalize(self) -> None:
        """Lets go of the session."""
        del self.session


def _rounds(requests: Sequence[Any]) -> Iterator[list[int]]:
    """Indices of requests, each sequence once a round: an id used again may have its END and START in one batch."""
    waiting = list(range(len(requests)))
    while waiting:
        first = {_key(requests[i]): i for i in reversed(waiting)}
        yield sorted(first.values())
        waiting = [i for i in waiting if i not in first.values()]


def _key(request: Any) -> Any:
    return request.correlation_id()


def _flag(request: Any, flag: int) -> bool:
    return bool(request.flags() & flag)


def _error(message: str) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG))
