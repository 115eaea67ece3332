"""Seconds of computation by stage of a tick, and counts of what is rare."""

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
    """Adds up seconds by stage.

    On CUDA it records events in the stream and never waits: a stage counts once the device has finished it, in this
    tick's reading or in a later one.
    """

    def __init__(self, device: torch.device, event: Callable[[], Any] = _cuda_event):
        self._is_cuda = device.type == "cuda"
        self._event = event
        self._seconds: dict[str, float] = defaultdict(float)
        self.counts: Counter[str] = Counter()  # since the start
        self._recorded: list[tuple[str, Any, Any]] = []  # stage, its first event, its last

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Times the block as `stage`."""
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
        """Seconds by stage of what has finished since the last reading."""
        unfinished = []
        for stage, first, last in self._recorded:
            if last.query():
                self._seconds[stage] += first.elapsed_time(last) / 1000
            else:
                unfinished.append((stage, first, last))
        self._recorded = unfinished
        seconds, self._seconds = dict(self._seconds), defaultdict(float)
        return seconds
