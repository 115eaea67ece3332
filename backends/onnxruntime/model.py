"""Triton's ONNX Runtime backend, where only the pip-installed Triton is there.

NVIDIA's container has the native one, in C++. This one is Python-based, serves the same repository unchanged, and
honours the part of the config that it needs: `sequence_batching.state` with zero initial states. A sequence's states
begin at START, are carried in this process, on a GPU in its memory, and are freed by END or by idling.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils

NO_SEQUENCE = 0  # the correlation id of a request to a model without states
ZEROS, NOBODYS = 0, 1  # rows of the states: how a sequence begins, and what no sequence reads


class Sequences:
    """Each sequence's row of the states, and when it was last used."""

    def __init__(self, idle_s: float):
        self._idle_s = idle_s
        self._rows: dict[Any, int] = {}
        self._used_s: dict[Any, float] = {}
        self._free: list[int] = []
        self.count = NOBODYS + 1  # rows that there have been

    def read(self, key: Any, start: bool) -> int:
        """The row that a sequence goes on from; raises KeyError for one that did not begin, or idled for too long."""
        if start:
            self.free(key)  # of an id used again, whatever becomes of this request
        return ZEROS if start or key == NO_SEQUENCE else self._rows[key]

    def write(self, key: Any) -> int:
        """The row for a sequence's new states."""
        if key == NO_SEQUENCE:
            return NOBODYS
        if key not in self._rows:
            if not self._free:
                self._free.append(self.count)
                self.count += 1
            self._rows[key] = self._free.pop()
        self._used_s[key] = time.monotonic()
        return self._rows[key]

    def free(self, key: Any) -> None:
        """Forgets a sequence."""
        if key in self._rows:
            self._free.append(self._rows.pop(key))
            del self._used_s[key]

    def sweep(self) -> None:
        """Forgets the sequences that have idled for too long: Triton frees their slots without a word."""
        oldest = time.monotonic() - self._idle_s
        for key in [key for key, used_s in self._used_s.items() if used_s < oldest]:
            self.free(key)


class HostStates:
    """The states of all sequences in this process's memory, [rows, *dims] each, and steps of the model on them."""

    def __init__(self, specs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]], rows: int):
        """With `rows` at first."""
        self._specs = specs
        self._names = [output["name"] for output in outputs] + [spec["output_name"] for spec in specs]
        self._outputs = len(outputs)
        self._states = [np.zeros((rows, *_dims(spec)), _dtype(spec)) for spec in specs]

    def load(self, file: Path, options: Any) -> None:
        """Loads the model."""
        self._session = onnxruntime.InferenceSession(file, options, ["CPUExecutionProvider"])

    def step(self, feed: dict[str, np.ndarray], rows: Sequence[int]) -> tuple[list[np.ndarray], list[Any]]:
        """Outputs and new states of a batch that goes on from so many rows."""
        states = {spec["input_name"]: state[rows] for spec, state in zip(self._specs, self._states, strict=True)}
        found = self._session.run(self._names, {**feed, **states})
        return found[: self._outputs], found[self._outputs :]

    def keep(self, rows: Sequence[int], states: Sequence[Any], count: int) -> None:
        """Keeps new states in their rows, of which there are `count`."""
        for number, new in enumerate(states):
            old = self._states[number]
            if count > len(old):
                old = self._states[number] = np.concatenate([old, np.zeros((count, *old.shape[1:]), old.dtype)])
            old[rows] = new


class DeviceStates:
    """The same on a device of torch's: of the states nothing goes to the host and back.

    ONNX Runtime works on torch's stream, so that each sees what the other has written.
    """

    def __init__(self, specs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]], rows: int, device: str):
        import torch  # brings CUDA's libraries too

        self._torch, self._device = torch, torch.device(device)
        self._stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
        self._input_names = [spec["input_name"] for spec in specs]
        with self._on_stream():
            self._states = [self._zeros(rows, spec) for spec in specs]
        self._outputs = [(output["name"], output) for output in outputs]
        self._new = [(spec["output_name"], spec) for spec in specs]

    def load(self, file: Path, options: Any) -> None:
        """Loads the model."""
        provider: Any = "CPUExecutionProvider"
        if self._stream:
            chosen = {
                "device_id": self._device.index,
                "user_compute_stream": str(self._stream.cuda_stream),
                "use_tf32": 0,  # float32 means float32
                "arena_extend_strategy": "kSameAsRequested",
            }
            provider = ("CUDAExecutionProvider", chosen)
        self._session = onnxruntime.InferenceSession(file, options, [provider])

    def step(self, feed: dict[str, np.ndarray], rows: Sequence[int]) -> tuple[list[np.ndarray], list[Any]]:
        """As `HostStates.step`."""
        with self._on_stream():
            inputs = {name: self._torch.from_numpy(array).to(self._device) for name, array in feed.items()}
            index = self._torch.tensor(rows, device=self._device)
            inputs |= {name: state[index] for name, state in zip(self._input_names, self._states, strict=True)}
            found = {name: self._zeros(len(rows), spec, filled=False) for name, spec in (*self._outputs, *self._new)}
            binding = self._session.io_binding()
            for name, tensor in inputs.items():
                binding.bind_input(name, *self._place(tensor))
            for name, tensor in found.items():
                binding.bind_output(name, *self._place(tensor))
            self._session.run_with_iobinding(binding)
            return [found[name].cpu().numpy() for name, _ in self._outputs], [found[name] for name, _ in self._new]

    def keep(self, rows: Sequence[int], states: Sequence[Any], count: int) -> None:
        """As `HostStates.keep`."""
        with self._on_stream():
            index = self._torch.tensor(rows, device=self._device)
            for number, new in enumerate(states):
                old = self._states[number]
                if count > len(old):
                    old = self._states[number] = self._torch.cat([old, old.new_zeros(count, *old.shape[1:])])
                old[index] = new

    def _zeros(self, rows: int, spec: dict[str, Any], filled: bool = True) -> Any:
        dtype = self._torch.from_numpy(np.zeros(0, _dtype(spec))).dtype
        make = self._torch.zeros if filled else self._torch.empty
        return make(rows, *_dims(spec), dtype=dtype, device=self._device)

    def _on_stream(self) -> Any:
        return self._torch.cuda.stream(self._stream) if self._stream else contextlib.nullcontext()

    def _place(self, tensor: Any) -> tuple[Any, ...]:
        """How a binding is told of a tensor."""
        dtype = self._torch.empty(0, dtype=tensor.dtype).numpy().dtype
        return self._device.type, self._device.index or 0, dtype, tuple(tensor.shape), tensor.data_ptr()


class TritonPythonModel:
    """One ONNX model, run for all requests of a batch at once."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads model.onnx of this model's version."""
        config = json.loads(args["model_config"])
        batching = config.get("sequence_batching", {})
        specs = batching.get("state", [])
        self.name = config["name"]
        self.inputs = [tensor["name"] for tensor in config["input"]]
        self.outputs = [tensor["name"] for tensor in config["output"]]
        idle_us = float(batching.get("max_sequence_idle_microseconds") or 1_000_000)  # Triton's own default
        self.sequences = Sequences(idle_us / 1e6)
        for spec in specs:
            if not all(initial.get("zero_data") for initial in spec.get("initial_state", [])):
                raise pb_utils.TritonModelException(
                    f"state {spec['input_name']} has an initial_state from a file, expected zero_data: true"
                )

        rows = NOBODYS + 1 + int(config["max_batch_size"])  # for as many sequences as the engine has slots
        options = onnxruntime.SessionOptions()
        threads = config.get("parameters", {}).get("intra_op_thread_count")
        options.intra_op_num_threads = int(threads["string_value"]) if threads else 0
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # other stages need the cores
        if args["model_instance_kind"] == "GPU":
            if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
                raise pb_utils.TritonModelException(
                    f"{self.name} is to run on a GPU, but the installed onnxruntime is for the CPU: "
                    "set triton.instance to cpu, or install onnxruntime-gpu"
                )
            device = f"cuda:{args['model_instance_device_id']}"
            self.states: Any = DeviceStates(specs, config["output"], rows, device)
        else:
            self.states = HostStates(specs, config["output"], rows)
        self.states.load(Path(args["model_repository"]) / args["model_version"] / "model.onnx", options)
        self._warm_up(config)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One step of every sequence in the batch; a sequence that did not begin gets an error of its own."""
        self.sequences.sweep()
        responses: list[Any] = [None] * len(requests)
        for indices in _rounds(requests):
            self._step(requests, indices, responses)
        return responses

    def _step(self, requests: Sequence[Any], indices: Sequence[int], responses: list[Any]) -> None:
        """Fills in the responses to requests of different sequences."""
        ready, inputs, rows = [], [], []
        for index in indices:
            request = requests[index]
            key, start = _key(request), _flag(request, pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START)
            try:
                rows.append(self.sequences.read(key, start))
            except KeyError:
                responses[index] = _error(
                    f"{self.name}: sequence {key!r} has no state here, expected START on its first request "
                    "and no longer pause than max_sequence_idle_microseconds"
                )
                continue
            ready.append(index)
            inputs.append([pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self.inputs])
        if ready:
            for index, response in zip(ready, self._run([requests[i] for i in ready], inputs, rows), strict=True):
                responses[index] = response
        for index in indices:
            if _flag(requests[index], pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_END):
                self.sequences.free(_key(requests[index]))

    def _warm_up(self, config: dict[str, Any]) -> None:
        """Runs zeros, a full batch and every power of two below: a first tick is as fast as a second."""
        most = max(1, int(config["max_batch_size"]))
        for batch in (most, *(1 << power for power in range(most.bit_length()))):  # the full one takes memory for all
            zeros = {tensor["name"]: np.zeros((batch, *_dims(tensor)), _dtype(tensor)) for tensor in config["input"]}
            self.states.step(zeros, [ZEROS] * batch)

    def _run(self, requests: Sequence[Any], inputs: Sequence[Sequence[np.ndarray]], rows: Sequence[int]) -> list[Any]:
        sizes = [tensors[0].shape[0] for tensors in inputs]  # 1 in a sequence; a model without states may get more
        feed = {name: np.concatenate([tensors[i] for tensors in inputs]) for i, name in enumerate(self.inputs)}
        outputs, states = self.states.step(feed, np.repeat(rows, sizes).tolist())
        try:
            written = [self.sequences.write(_key(request)) for request in requests]
            self.states.keep(np.repeat(written, sizes).tolist(), states, self.sequences.count)
        except BaseException:  # their rows hold what is not theirs
            for request in requests:
                self.sequences.free(_key(request))
            raise
        responses, first = [], 0
        for size in sizes:
            tensors = [
                pb_utils.Tensor(name, np.ascontiguousarray(output[first : first + size]))
                for name, output in zip(self.outputs, outputs, strict=True)
            ]
            responses.append(pb_utils.InferenceResponse(tensors))
            first += size
        return responses

    def finalize(self) -> None:
        """Lets go of the model."""
        del self.states


def _dims(tensor: dict[str, Any]) -> list[int]:
    return [int(dim) for dim in tensor["dims"]]


def _dtype(tensor: dict[str, Any]) -> Any:
    return pb_utils.triton_string_to_numpy(tensor["data_type"])


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
