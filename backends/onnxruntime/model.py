"""Triton's ONNX Runtime backend in Python, for the pip-installed Triton, which has no native one.

NVIDIA's container contains the native backend, in C++. This backend serves the same repository unchanged, and supports
`sequence_batching.state` with zero initial states. This process holds the states of a sequence, in the GPU's memory for
a model on a GPU, from START until END or the idle timeout.
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
ZEROS, UNUSED = 0, 1  # rows of the states: initial values of every sequence; results that no sequence reads


class Sequences:
    """Map of sequences to rows of the states, with the time of the last use."""

    def __init__(self, idle_s: float):
        self._idle_s = idle_s
        self._rows: dict[Any, int] = {}
        self._used_s: dict[Any, float] = {}
        self._free: list[int] = []
        self.count = UNUSED + 1  # number of rows allocated

    def read(self, key: Any, start: bool) -> int:
        """Return the row with a sequence's states; raise `KeyError` if it has not started or has timed out."""
        if start:
            self.free(key)  # START resets an id that is in use, even if this request fails
        return ZEROS if start or key == NO_SEQUENCE else self._rows[key]

    def write(self, key: Any) -> int:
        """Return the row for a sequence's new states, allocated if need be."""
        if key == NO_SEQUENCE:
            return UNUSED
        if key not in self._rows:
            if not self._free:
                self._free.append(self.count)
                self.count += 1
            self._rows[key] = self._free.pop()
        self._used_s[key] = time.monotonic()
        return self._rows[key]

    def free(self, key: Any) -> None:
        """Free the row of a sequence."""
        if key in self._rows:
            self._free.append(self._rows.pop(key))
            del self._used_s[key]

    def sweep(self) -> None:
        """Free the rows of idle sequences: Triton frees an idle slot without a notification."""
        oldest = time.monotonic() - self._idle_s
        for key in [key for key, used_s in self._used_s.items() if used_s < oldest]:
            self.free(key)


class HostStates:
    """States of all sequences in host memory, [rows, *dims] each, and the model's session."""

    def __init__(self, specs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]], rows: int):
        """Allocate `rows` rows of each state."""
        self._specs = specs
        self._names = [output["name"] for output in outputs] + [spec["output_name"] for spec in specs]
        self._outputs = len(outputs)
        self._states = [np.zeros((rows, *_dims(spec)), _dtype(spec)) for spec in specs]

    def load(self, file: Path, options: Any) -> None:
        """Load the model."""
        self._session = onnxruntime.InferenceSession(file, options, ["CPUExecutionProvider"])

    def step(self, feed: dict[str, np.ndarray], rows: Sequence[int]) -> tuple[list[np.ndarray], list[Any]]:
        """Run a batch with the states of `rows`; return its outputs and new states."""
        states = {spec["input_name"]: state[rows] for spec, state in zip(self._specs, self._states, strict=True)}
        found = self._session.run(self._names, {**feed, **states})
        return found[: self._outputs], found[self._outputs :]

    def keep(self, rows: Sequence[int], states: Sequence[Any], count: int) -> None:
        """Write new states to their rows; grow the states to `count` rows."""
        for number, new in enumerate(states):
            old = self._states[number]
            if count > len(old):
                old = self._states[number] = np.concatenate([old, np.zeros((count, *old.shape[1:]), old.dtype)])
            old[rows] = new


class DeviceStates:
    """States of all sequences on a torch device, without copies to the host.

    ONNX Runtime runs on torch's stream, which orders the reads and writes of both.
    """

    def __init__(self, specs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]], rows: int, device: str):
        import torch  # also loads the CUDA libraries

        self._torch, self._device = torch, torch.device(device)
        self._stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
        self._input_names = [spec["input_name"] for spec in specs]
        with self._on_stream():
            self._states = [self._zeros(rows, spec) for spec in specs]
        self._outputs = [(output["name"], output) for output in outputs]
        self._new = [(spec["output_name"], spec) for spec in specs]

    def load(self, file: Path, options: Any) -> None:
        """Load the model."""
        provider: Any = "CPUExecutionProvider"
        if self._stream:
            provider_options = {
                "device_id": self._device.index,
                "user_compute_stream": str(self._stream.cuda_stream),
                "use_tf32": 0,  # float32 means float32
                "arena_extend_strategy": "kSameAsRequested",
            }
            provider = ("CUDAExecutionProvider", provider_options)
        self._session = onnxruntime.InferenceSession(file, options, [provider])

    def step(self, feed: dict[str, np.ndarray], rows: Sequence[int]) -> tuple[list[np.ndarray], list[Any]]:
        """Run a batch, as `HostStates.step`."""
        with self._on_stream():
            inputs = {name: self._torch.from_numpy(array).to(self._device) for name, array in feed.items()}
            index = self._torch.tensor(rows, device=self._device)
            inputs |= {name: state[index] for name, state in zip(self._input_names, self._states, strict=True)}
            found = {name: self._zeros(len(rows), spec, filled=False) for name, spec in (*self._outputs, *self._new)}
            binding = self._session.io_binding()
            for name, tensor in inputs.items():
                binding.bind_input(name, *self._binding_of(tensor))
            for name, tensor in found.items():
                binding.bind_output(name, *self._binding_of(tensor))
            self._session.run_with_iobinding(binding)
            return [found[name].cpu().numpy() for name, _ in self._outputs], [found[name] for name, _ in self._new]

    def keep(self, rows: Sequence[int], states: Sequence[Any], count: int) -> None:
        """Write new states, as `HostStates.keep`."""
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

    def _binding_of(self, tensor: Any) -> tuple[Any, ...]:
        """Return the arguments that bind a tensor to an input or output."""
        dtype = self._torch.empty(0, dtype=tensor.dtype).numpy().dtype
        return self._device.type, self._device.index or 0, dtype, tuple(tensor.shape), tensor.data_ptr()


class TritonPythonModel:
    """One ONNX model; it runs all requests of a batch at once."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load model.onnx of this model's version."""
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

        rows = UNUSED + 1 + int(config["max_batch_size"])  # capacity for a full batch; `keep` grows it
        options = onnxruntime.SessionOptions()
        threads = config.get("parameters", {}).get("intra_op_thread_count")
        options.intra_op_num_threads = int(threads["string_value"]) if threads else 0
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # other stages need the cores
        if args["model_instance_kind"] == "GPU":
            if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
                raise pb_utils.TritonModelException(
                    f"{self.name} is configured for a GPU, but the installed onnxruntime supports only the CPU: "
                    "set triton.instance to cpu, or install onnxruntime-gpu"
                )
            device = f"cuda:{args['model_instance_device_id']}"
            self.states: Any = DeviceStates(specs, config["output"], rows, device)
        else:
            self.states = HostStates(specs, config["output"], rows)
        self.states.load(Path(args["model_repository"]) / args["model_version"] / "model.onnx", options)
        self._warm_up(config)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Compute one step of every sequence in the batch; only a sequence that has not started gets an error."""
        self.sequences.sweep()
        responses: list[Any] = [None] * len(requests)
        for indices in _rounds(requests):
            self._step(requests, indices, responses)
        return responses

    def _step(self, requests: Sequence[Any], indices: Sequence[int], responses: list[Any]) -> None:
        """Write the responses to requests of different sequences into `responses`."""
        ready, inputs, rows = [], [], []
        for index in indices:
            request = requests[index]
            key, start = _key(request), _flag(request, pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START)
            try:
                rows.append(self.sequences.read(key, start))
            except KeyError:
                responses[index] = _error(
                    f"{self.name}: sequence {key!r} has no state here, expected START on its first request "
                    "and no pause longer than max_sequence_idle_microseconds"
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
        """Run zeros in the maximum batch and in every power of two below: the first ticks are as fast as later ones."""
        max_batch = max(1, int(config["max_batch_size"]))
        sizes = [1 << power for power in range(max_batch.bit_length())]
        for batch in (max_batch, *sizes):  # the maximum first: it allocates the memory for all sizes
            zeros = {tensor["name"]: np.zeros((batch, *_dims(tensor)), _dtype(tensor)) for tensor in config["input"]}
            self.states.step(zeros, [ZEROS] * batch)

    def _run(self, requests: Sequence[Any], inputs: Sequence[Sequence[np.ndarray]], rows: Sequence[int]) -> list[Any]:
        sizes = [
            tensors[0].shape[0] for tensors in inputs
        ]  # rows a request: 1 in a sequence, any number for a model without states
        feed = {name: np.concatenate([tensors[i] for tensors in inputs]) for i, name in enumerate(self.inputs)}
        outputs, states = self.states.step(feed, np.repeat(rows, sizes).tolist())
        try:
            written = [self.sequences.write(_key(request)) for request in requests]
            self.states.keep(np.repeat(written, sizes).tolist(), states, self.sequences.count)
        except BaseException:  # the rows may hold states of another step
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
        """Release the model and its states."""
        del self.states


def _dims(tensor: dict[str, Any]) -> list[int]:
    return [int(dim) for dim in tensor["dims"]]


def _dtype(tensor: dict[str, Any]) -> Any:
    return pb_utils.triton_string_to_numpy(tensor["data_type"])


def _rounds(requests: Sequence[Any]) -> Iterator[list[int]]:
    """Yield indices of requests, each sequence once a round: a reused id may have its END and START in one batch."""
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
