"""Timer of the stages of a tick, and counters of rare events."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


def _cuda_event() -> Any:
    return torch.cuda.Event(enable_timing=True)


class StageTimer:
    """Sum of seconds by stage.

    On CUDA the timer records events in the stream and never waits: `read` includes a stage once the device has finished
    it, possibly in a later tick.
    """

    def __init__(self, device: torch.device, event: Callable[[], Any] = _cuda_event):
        self._is_cuda = device.type == "cuda"
        self._event = event
        self._seconds: dict[str, float] = defaultdict(float)
        self.counts: Counter[str] = Counter()  # rare events since start-up, by name
        self._recorded: list[tuple[str, Any, Any]] = []  # stage, first event, last event

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Time the block as `stage`."""
        if self._is_cuda:
            first, last = self._event(), self._event()
            first.record()
            yield
            last.record()
            self._recorded.append((stage, first, last))
        else:
            started_s = time.perf_counter()
            yield
            self._seconds[stage] += time.perf_counter() - started_s

    def read(self) -> dict[str, float]:
        """Return seconds by stage for the work that has finished since the last call."""
        unfinished = []
        for stage, first, last in self._recorded:
            if last.query():
                self._seconds[stage] += first.elapsed_time(last) / 1000
            else:
                unfinished.append((stage, first, last))
        self._recorded = unfinished
        seconds, self._seconds = dict(self._seconds), defaultdict(float)
        return seconds
