"""Silero VAD: how likely each 32 ms of a microphone hold speech, for all conversations together.

The package's own ONNX model for sequences of windows takes one conversation; its recurrence is opened here to a batch
of them, which takes two reshapes and changes no weight.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import OptionError

WINDOW = 512  # samples of a probability
CONTEXT = 64  # samples before a window that the model gets too
HIDDEN = 128
ROWS_PER_RUN = 8  # a run is bound by arithmetic, 0.4 ms a row: more rows are shared among the threads
THREADS = 4
RECURRENT_IN, RECURRENT_OUT = "/Transpose_output_0", "/recurrent/Squeeze_output_0"  # tensors of the package's graph


class VadState:
    """What the model carries of each slot's conversation, and samples that do not fill a window yet."""

    def __init__(self, slots: int):
        self.hidden = np.zeros((slots, HIDDEN), np.float32)
        self.cell = np.zeros((slots, HIDDEN), np.float32)
        self.samples = [np.zeros(CONTEXT, np.float32) for _ in range(slots)]  # the context, then such samples

    def reset(self, slot: int) -> None:
        """Forgets a slot's conversation."""
        self.hidden[slot] = 0
        self.cell[slot] = 0
        self.samples[slot] = np.zeros(CONTEXT, np.float32)


class Vad:
    """The model. Raises `OptionError` at construction when the package silero-vad is not installed."""

    def __init__(self) -> None:
        package = importlib.util.find_spec("silero_vad")  # not imported: only its file is wanted
        if package is None or not package.submodule_search_locations:
            raise OptionError("detection is 'server_vad', but the package silero-vad is not installed: choose 'manual'")
        import onnxruntime  # a server whose clients commit their turns themselves needs neither

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3  # the shapes that the graph declares are of one conversation
        file = Path(package.submodule_search_locations[0]) / "data" / "silero_vad_16k_sequence.onnx"
        self._session = onnxruntime.InferenceSession(
            _batched(file).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="vad")

    def __call__(self, state: VadState, slots: Sequence[int], sounds: Sequence[np.ndarray]) -> list[list[float]]:
        """Probabilities of the windows that PCM16 [samples] of each slot completes; the state moves on.

        A conversation's probabilities do not depend on the others.
        """
        by_count: dict[int, list[int]] = {}  # rows by the windows that they complete
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
            size = max(ROWS_PER_RUN, -(-len(rows) // THREADS))
            runs += [(count, rows[first : first + size]) for first in range(0, len(rows) if count else 0, size)]

        def run(part: tuple[int, list[int]]) -> np.ndarray:
            windows = np.stack([_windows(signals[row], part[0]) for row in part[1]])
            return self._run(state, [slots[row] for row in part[1]], windows)

        results = self._threads.map(run, runs) if len(runs) > 1 else map(run, runs)
        for (_, rows), probabilities in zip(runs, results, strict=True):
            for row, of_row in zip(rows, probabilities, strict=True):
                found[row] = of_row.tolist()
        return found

    def _run(self, state: VadState, slots: Sequence[int], windows: np.ndarray) -> np.ndarray:
        """windows [B, T, 576] -> probabilities [B, T]."""
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
    """[count, 576] of a signal that begins with the context."""
    views: np.ndarray = np.lib.stride_tricks.sliding_window_view(signal, CONTEXT + WINDOW)
    return views[::WINDOW][:count]


def _batched(file: Path) -> Any:
    """The package's model for windows [T * B, 576] in order of time, states [1, B, 128], and B."""
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
