"""Silero VAD: the probability of speech in each 32 ms of a microphone's signal, batched over conversations.

The package's ONNX model for sequences of windows accepts one conversation. Two reshapes around its recurrent layer
extend it to a batch of conversations, with unchanged weights.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import OptionError

WINDOW = 512  # samples per probability
CONTEXT = 64  # samples before a window that are also input of the model
HIDDEN = 128
MIN_ROWS_PER_RUN = 8  # rows that one thread computes before others share them; a run takes 0.4 ms per row
THREADS = 4
RECURRENT_IN, RECURRENT_OUT = "/Transpose_output_0", "/recurrent/Squeeze_output_0"  # tensors of the package's graph


class VadState:
    """Recurrent state of each slot's conversation, and samples of its unfinished window."""

    def __init__(self, slots: int):
        self.hidden = np.zeros((slots, HIDDEN), np.float32)
        self.cell = np.zeros((slots, HIDDEN), np.float32)
        self.samples = [np.zeros(CONTEXT, np.float32) for _ in range(slots)]  # context, then the unfinished window

    def reset(self, slot: int) -> None:
        """Erase the state of a slot's conversation."""
        self.hidden[slot] = 0
        self.cell[slot] = 0
        self.samples[slot] = np.zeros(CONTEXT, np.float32)


class Vad:
    """The VAD model, extended to batches."""

    def __init__(self) -> None:
        """Load the model. Raises `OptionError` if the package silero-vad is not installed."""
        package = importlib.util.find_spec("silero_vad")  # not imported: only its ONNX file is needed
        if package is None or not package.submodule_search_locations:
            raise OptionError("detection is 'server_vad', but the package silero-vad is not installed: choose 'manual'")
        import onnxruntime  # not needed if all clients use manual detection

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3  # hides warnings about declared shapes, which are for one conversation
        file = Path(package.submodule_search_locations[0]) / "data" / "silero_vad_16k_sequence.onnx"
        self._session = onnxruntime.InferenceSession(
            _batched(file).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="vad")

    def __call__(self, state: VadState, slots: Sequence[int], sounds: Sequence[np.ndarray]) -> list[list[float]]:
        """Append PCM16 [samples] to each slot and return the probabilities of the windows that became complete.

        A conversation's probabilities do not depend on the other slots.
        """
        by_count: dict[int, list[int]] = {}  # rows by number of windows that became complete
        signals = []
        for row, (slot, pcm) in enumerate(zip(slots, sounds, strict=True)):
            signal = np.concatenate([state.samples[slot], pcm.astype(np.float32) / 32768.0])
            count = (len(signal) - CONTEXT) // WINDOW
            state.samples[slot] = signal[count * WINDOW :]
            signals.append(signal)
            by_count.setdefault(count, []).append(row)
        found: list[list[float]] = [[] for _ in slots]
        runs = []
        for count, rows in by_count.items():
            size = max(MIN_ROWS_PER_RUN, -(-len(rows) // THREADS))
            runs += [(count, rows[first : first + size]) for first in range(0, len(rows) if count else 0, size)]

        def run(work: tuple[int, list[int]]) -> np.ndarray:
            count, rows = work
            windows = np.stack([_windows(signals[row], count) for row in rows])
            return self._run(state, [slots[row] for row in rows], windows)

        results = self._threads.map(run, runs) if len(runs) > 1 else map(run, runs)
        for (_, rows), probabilities in zip(runs, results, strict=True):
            for row, of_row in zip(rows, probabilities, strict=True):
                found[row] = of_row.tolist()
        return found

    def _run(self, state: VadState, slots: Sequence[int], windows: np.ndarray) -> np.ndarray:
        """Return probabilities [B, T] of windows [B, T, 576], and update the state of the slots."""
        rows, count, size = windows.shape
        feed = {
            "input": windows.transpose(1, 0, 2).reshape(-1, size),
            "h": state.hidden[None, slots],
            "c": state.cell[None, slots],
            "batch": np.array([rows]),
        }
        probabilities, hidden, cell = self._session.run(None, feed)
        state.hidden[slots], state.cell[slots] = hidden[0], cell[0]
        by_row: np.ndarray = probabilities.reshape(count, rows).T
        return by_row


def _windows(signal: np.ndarray, count: int) -> np.ndarray:
    """Return the first windows [count, 576] of a signal that starts with the context."""
    views: np.ndarray = np.lib.stride_tricks.sliding_window_view(signal, CONTEXT + WINDOW)
    return views[::WINDOW][:count]


def _batched(file: Path) -> Any:
    """Return the package's model with inputs windows [T * B, 576] in time order, states [1, B, 128], and B."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(file)
    graph = model.graph
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name == RECURRENT_IN:
                node.input[i] = "recurrent_in"
            elif name == RECURRENT_OUT:
                node.input[i] = "recurrent_out"
    graph.input.append(helper.make_tensor_value_info("batch", TensorProto.INT64, [1]))
    sizes = {"any": [-1], "one": [1], "hidden": [HIDDEN]}
    graph.initializer.extend(numpy_helper.from_array(np.array(size), f"size_{name}") for name, size in sizes.items())
    added = {
        RECURRENT_IN: [
            helper.make_node("Concat", ["size_any", "batch", "size_hidden"], ["shape_in"], axis=0),
            helper.make_node("Reshape", [RECURRENT_IN, "shape_in"], ["recurrent_in"]),  # [T, B, 128]
        ],
        RECURRENT_OUT: [
            helper.make_node("Concat", ["size_any", "size_one", "size_hidden"], ["shape_out"], axis=0),
            helper.make_node("Reshape", [RECURRENT_OUT, "shape_out"], ["recurrent_out"]),  # [T * B, 1, 128]
        ],
    }
    nodes = []
    for node in graph.node:
        nodes.append(node)
        nodes += added.get(node.output[0], [])
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        if value.name in ("h", "c", "hn", "cn"):
            value.type.tensor_type.shape.dim[1].dim_param = "batch_size"
    return model
