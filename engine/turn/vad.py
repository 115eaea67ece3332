"""Silero VAD: how likely each 32 ms of a microphone holds speech.

The package's own ONNX model for 16 kHz that takes many windows in one call; it runs on the CPU, a conversation at a
time, so a conversation's probabilities do not depend on its company.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from engine.errors import OptionError

WINDOW = 512  # samples of a probability
CONTEXT = 64  # samples before a window that the model sees too
STATE = (1, 1, 128)
THREADS = 4  # conversations looked at side by side; the model itself runs in one thread


@dataclass
class VadState:
    """What the model carries of one conversation, and samples that do not fill a window yet."""

    hidden: np.ndarray = field(default_factory=lambda: np.zeros(STATE, np.float32))
    cell: np.ndarray = field(default_factory=lambda: np.zeros(STATE, np.float32))
    held: np.ndarray = field(default_factory=lambda: np.zeros(CONTEXT, np.float32))  # the context, and such samples


class Vad:
    """The model. Raises `OptionError` at construction when the package silero-vad is not installed."""

    def __init__(self) -> None:
        package = importlib.util.find_spec("silero_vad")  # not imported: only its file is wanted
        if package is None or not package.submodule_search_locations:
            raise OptionError("detection is 'server_vad', but the package silero-vad is not installed: choose 'manual'")
        import onnxruntime  # a server whose clients commit their turns themselves needs neither

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        model = Path(package.submodule_search_locations[0]) / "data" / "silero_vad_16k_sequence.onnx"
        self._session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="vad")

    def __call__(self, states: Sequence[VadState], sounds: Sequence[np.ndarray]) -> list[list[float]]:
        """Probabilities of the windows that each conversation's PCM16 [samples] completes; the states move on."""
        if len(states) == 1:  # without a detour
            return [self._listen(states[0], sounds[0])]
        return list(self._threads.map(self._listen, states, sounds))

    def _listen(self, state: VadState, pcm: np.ndarray) -> list[float]:
        signal = np.concatenate([state.held, pcm.astype(np.float32) / 32768.0])
        count = (len(signal) - CONTEXT) // WINDOW
        state.held = signal[count * WINDOW :]
        if not count:
            return []
        windows = np.lib.stride_tricks.sliding_window_view(signal, CONTEXT + WINDOW)[::WINDOW][:count]
        probabilities, state.hidden, state.cell = self._session.run(
            None, {"input": windows, "h": state.hidden, "c": state.cell}
        )
        return [float(probability) for probability in probabilities]
